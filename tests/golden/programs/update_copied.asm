// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program update_copied
machine tiny
dtype f32
accum f32
dram 256

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor s f32[4,4] state @0
tensor x f32[4,4] input @64
tensor y f32[4,4] value @128
tensor s2 f32[4,4] value @192
tensor z f32[4,4] value @128

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node old op=map phase=forward origin=""
node new op=map phase=forward origin=""
node both op=map phase=forward origin=""
node write_back.s op=write_back phase=update origin=""


kernel old {
  buffer x0 gbuf f32[16] depth=1 @0
  buffer x1 gbuf f32[16] depth=1 @64
  buffer y0 gbuf f32[16] depth=2 @128
  token x0.free 1
  token x0.full 0
  token x1.free 1
  token x1.full 0
  token y0.free 2
  token y0.full 0
  wait load x0.free
  LD x0{4:4,4:1} <- s(0,0) #0
  signal load x0.full
  wait vector x0.full
  wait load x1.free
  LD x1{4:4,4:1} <- x(0,0) #0
  signal load x1.full
  wait vector x1.full
  wait vector y0.free
  VMAP y0{4:4,4:1} <- x0{4:4,4:1} x1{4:4,4:1} | s0 s1 add #0
  signal vector y0.full
  wait store y0.full
  ST y(0,0) <- y0{4:4,4:1} #0
  release store y0.free
  release vector x0.free
  release vector x1.free
}

kernel new {
  buffer x0 gbuf f32[16] depth=1 @0
  buffer y0 gbuf f32[16] depth=2 @64
  token x0.free 1
  token x0.full 0
  token y0.free 2
  token y0.full 0
  wait load x0.free
  LD x0{4:4,4:1} <- y(0,0) #1
  signal load x0.full
  wait vector x0.full
  wait vector y0.free
  VMAP y0{4:4,4:1} <- x0{4:4,4:1} | s0 2 mul #1
  signal vector y0.full
  wait store y0.full
  ST s2(0,0) <- y0{4:4,4:1} #1
  release store y0.free
  release vector x0.free
}

kernel both {
  buffer x0 gbuf f32[16] depth=1 @0
  buffer x1 gbuf f32[16] depth=1 @64
  buffer y0 gbuf f32[16] depth=2 @128
  token x0.free 1
  token x0.full 0
  token x1.free 1
  token x1.full 0
  token y0.free 2
  token y0.full 0
  wait load x0.free
  LD x0{4:4,4:1} <- s(0,0) #2
  signal load x0.full
  wait vector x0.full
  wait load x1.free
  LD x1{4:4,4:1} <- s2(0,0) #2
  signal load x1.full
  wait vector x1.full
  wait vector y0.free
  VMAP y0{4:4,4:1} <- x0{4:4,4:1} x1{4:4,4:1} | s0 s1 sub #2
  signal vector y0.full
  wait store y0.full
  ST z(0,0) <- y0{4:4,4:1} #2
  release store y0.free
  release vector x0.free
  release vector x1.free
}

kernel write_back.s {
  buffer t gbuf f32[16] depth=2 @0
  token t.free 2
  token t.full 0
  wait load t.free
  LD t{4:4,4:1} <- s2(0,0) #3
  signal load t.full
  wait store t.full
  ST s(0,0) <- t{4:4,4:1} #3
  release store t.free
}
