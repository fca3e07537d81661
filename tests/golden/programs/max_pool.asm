// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program max_pool
machine tiny
dtype f32
accum f32
dram 2624

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor x f32[1,4,8,8] input @0
tensor dy f32[1,4,4,4] input @1024
tensor y f32[1,4,4,4] value @1280
tensor place u8[1,4,4,4] value @1536
tensor dx f32[1,4,8,8] value @1600

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node pool op=window_max phase=forward origin=""
node pool_grad op=window_max_grad phase=forward origin=""


kernel pool {
  buffer x gbuf f32[256] depth=2 @0
  buffer y0 gbuf f32[64] depth=2 @2048
  buffer y1 gbuf u8[64] depth=2 @2560
  token x.free 2
  token x.full 0
  token y0.free 2
  token y0.full 0
  token y1.free 2
  token y1.full 0
  wait load x.free
  LD x{1:256,4:64,8:8,8:1} <- x(0,0,0,0) fill=-inf #0
  signal load x.full
  wait vector x.full
  wait vector y0.free
  VRED max axes=[4,5] y0{1:64,4:16,4:4,4:1,2:0,2:0} <- x{1:256,4:64,4:16,4:2,2:8,2:1} | s0 #0
  signal vector y0.full
  wait store y0.full
  ST y(0,0,0,0) <- y0{1:64,4:16,4:4,4:1} #0
  release store y0.free
  wait vector y1.free
  VRED argmax axes=[4,5] y1{1:64,4:16,4:4,4:1,2:0,2:0} <- x{1:256,4:64,4:16,4:2,2:8,2:1} | s0 #0
  signal vector y1.full
  wait store y1.full
  ST place(0,0,0,0) <- y1{1:64,4:16,4:4,4:1} #0
  release store y1.free
  release vector x.free
}

kernel pool_grad {
  buffer x0 gbuf f32[50] depth=2 @0
  buffer x1 gbuf u8[50] depth=2 @448
  buffer sums gbuf f32[200] depth=1 @576
  buffer y gbuf f32[128] depth=2 @1408
  token x0.free 2
  token x0.full 0
  token x1.free 2
  token x1.full 0
  token sums.free 1
  token sums.full 0
  token y.free 2
  token y.full 0
  loop i0 2 {
    wait load x0.free
    LD x0[i0]{1:50,2:25,5:5,5:1} <- dy(0,2*i0,-1,-1) #1
    signal load x0.full
    wait vector x0.full
    wait load x1.free
    LD x1[i0]{1:50,2:25,5:5,5:1} <- place(0,2*i0,-1,-1) #1
    signal load x1.full
    wait vector x1.full
    wait vector sums.free
    VMAP sums{200:1} <- | 0 #1
    loop i1 2 {
      loop i2 2 {
        VMAP sums{1:200,2:100,5:20,5:2}@10*i1+i2 <- sums{1:200,2:100,5:20,5:2}@10*i1+i2 x0[i0]{1:50,2:25,5:5,5:1} x1[i0]{1:50,2:25,5:5,5:1} | s0 s1 s2 k0 eq mul add | 2*i1+i2 #1
      }
    }
    release vector x0.free
    release vector x1.free
    wait vector y.free
    VMAP y[i0]{1:128,2:64,8:8,8:1} <- sums{1:200,2:100,8:10,8:1}@22 | s0 #1
    signal vector sums.full
    wait vector sums.full
    release vector sums.free
    signal vector y.full
    wait store y.full
    ST dx(0,2*i0,0,0) <- y[i0]{1:128,2:64,8:8,8:1} #1
    release store y.free
  }
}
