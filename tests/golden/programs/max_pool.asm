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
  buffer x0 gbuf f32[100] depth=2 @0
  buffer x1 gbuf u8[100] depth=2 @832
  buffer y gbuf f32[256] depth=2 @1088
  token x0.free 2
  token x0.full 0
  token x1.free 2
  token x1.full 0
  token y.free 2
  token y.full 0
  wait load x0.free
  LD x0{1:100,4:25,5:5,5:1} <- dy(0,0,-1,-1) #1
  signal load x0.full
  wait vector x0.full
  wait load x1.free
  LD x1{1:100,4:25,5:5,5:1} <- place(0,0,-1,-1) #1
  signal load x1.full
  wait vector x1.full
  wait vector y.free
  VMAP y{1:256,4:64,4:16,4:2} <- x0{1:100,4:25,4:5,4:1}@6 x1{1:100,4:25,4:5,4:1}@6 | s0 s1 0 eq mul #1
  VMAP y{1:256,4:64,4:16,4:2}@1 <- x0{1:100,4:25,4:5,4:1}@6 x1{1:100,4:25,4:5,4:1}@6 | s0 s1 1 eq mul #1
  VMAP y{1:256,4:64,4:16,4:2}@8 <- x0{1:100,4:25,4:5,4:1}@6 x1{1:100,4:25,4:5,4:1}@6 | s0 s1 2 eq mul #1
  VMAP y{1:256,4:64,4:16,4:2}@9 <- x0{1:100,4:25,4:5,4:1}@6 x1{1:100,4:25,4:5,4:1}@6 | s0 s1 3 eq mul #1
  release vector x0.free
  release vector x1.free
  signal vector y.full
  wait store y.full
  ST dx(0,0,0,0) <- y{1:256,4:64,8:8,8:1} #1
  release store y.free
}
