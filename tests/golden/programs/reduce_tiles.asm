// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program reduce_tiles
machine tiny
dtype f32
accum f32
dram 25728

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor x f32[16,4,10,10] input @0
tensor reduce f32[1,4,1,1] value @25600
tensor reduce.1 f32[1,4,1,1] value @25664

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node reduce op=reduce phase=forward origin=""


kernel reduce {
  buffer x0 gbuf f32[400] depth=2 @0
  buffer a0 gbuf f32[4] depth=1 @3200
  buffer a1 gbuf f32[4] depth=1 @3264
  buffer y0 gbuf f32[4] depth=2 @3328
  buffer y1 gbuf f32[4] depth=2 @3392
  token x0.free 2
  token x0.full 0
  token a0.free 1
  token a0.full 0
  token a1.free 1
  token a1.full 0
  token y0.free 2
  token y0.full 0
  token y1.free 2
  token y1.full 0
  wait vector a0.free
  wait vector a1.free
  loop i0 16 {
    wait load x0.free
    LD x0[i0]{1:400,4:100,10:10,10:1} <- x(i0,0,0,0) #0
    signal load x0.full
    wait vector x0.full
    VRED sum axes=[0,2,3] a0{1:0,4:1,10:0,10:0} <- x0[i0]{1:400,4:100,10:10,10:1} | s0 add=i0 #0
    VRED sum axes=[0,2,3] a1{1:0,4:1,10:0,10:0} <- x0[i0]{1:400,4:100,10:10,10:1} | s0 s0 mul add=i0 #0
    release vector x0.free
  }
  signal vector a0.full
  wait vector a0.full
  wait vector y0.free
  VMAP y0{1:4,4:1,1:1,1:1} <- a0{1:4,4:1,1:1,1:1} | s0 #0
  release vector a0.free
  signal vector y0.full
  wait store y0.full
  ST reduce(0,0,0,0) <- y0{1:4,4:1,1:1,1:1} #0
  release store y0.free
  signal vector a1.full
  wait vector a1.full
  wait vector y1.free
  VMAP y1{1:4,4:1,1:1,1:1} <- a1{1:4,4:1,1:1,1:1} | s0 #0
  release vector a1.free
  signal vector y1.full
  wait store y1.full
  ST reduce.1(0,0,0,0) <- y1{1:4,4:1,1:1,1:1} #0
  release store y1.free
}
