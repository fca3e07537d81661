// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program map_broadcast
machine tiny
dtype f32
accum f32
dram 25664

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor x f32[8,4,10,10] input @0
tensor scale f32[1,4,1,1] input @12800
tensor map f32[8,4,10,10] value @12864

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node map op=map phase=forward origin=""


kernel map {
  buffer x0 gbuf f32[200] depth=2 @0
  buffer x1 gbuf f32[2] depth=2 @1600
  buffer y0 gbuf f32[200] depth=2 @1664
  token x0.free 2
  token x0.full 0
  token x1.free 2
  token x1.full 0
  token y0.free 2
  token y0.full 0
  loop i0 2 {
    wait load x1.free
    LD x1[i0]{1:2,2:1,1:1,1:1} <- scale(0,2*i0,0,0) #0
    signal load x1.full
    wait vector x1.full
    loop i1 8 {
      wait load x0.free
      LD x0[i1]{1:200,2:100,10:10,10:1} <- x(i1,2*i0,0,0) #0
      signal load x0.full
      wait vector x0.full
      wait vector y0.free
      VMAP y0[i1]{1:200,2:100,10:10,10:1} <- x0[i1]{1:200,2:100,10:10,10:1} x1[i0]{1:0,2:1,10:0,10:0} | s0 s1 mul 0 max #0
      signal vector y0.full
      wait store y0.full
      ST map(i1,2*i0,0,0) <- y0[i1]{1:200,2:100,10:10,10:1} #0
      release store y0.free
      release vector x0.free
    }
    release vector x1.free
  }
}
