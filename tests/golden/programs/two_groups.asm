// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program two_groups
machine tiny
dtype f32
accum f32
dram 1664

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor x f32[4,4,8] input @0
tensor b f32[4,4,8] value @512
tensor c f32[4,4,8] value @1024
tensor s f32[1,4,8] value @1536

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node first op=map phase=forward origin=""
node second op=map phase=forward origin=""
node third op=map phase=forward origin=""
node sums op=reduce phase=forward origin=""


kernel first {
  buffer x0 gbuf f32[96] depth=1 @0
  buffer y0 gbuf f32[96] depth=2 @384
  buffer r.a gbuf f32[96] depth=1 @1152
  token x0.free 1
  token x0.full 0
  token y0.free 2
  token y0.full 0
  wait load x0.free
  LD x0{3:32,4:8,8:1} <- x(0,0,0) #0
  signal load x0.full
  wait vector x0.full
  VMAP r.a{3:32,4:8,8:1} <- x0{3:32,4:8,8:1} | s0 0 max #0
  release vector x0.free
  wait vector y0.free
  VMAP y0{3:32,4:8,8:1} <- r.a{3:32,4:8,8:1} | s0 s0 mul #1
  signal vector y0.full
  wait store y0.full
  ST b(0,0,0) <- y0{3:32,4:8,8:1} #1
  release store y0.free
  wait load x0.free
  LD x0{1:32,4:8,8:1} <- x(3,0,0) #0
  signal load x0.full
  wait vector x0.full
  VMAP r.a{1:32,4:8,8:1} <- x0{1:32,4:8,8:1} | s0 0 max #0
  release vector x0.free
  wait vector y0.free
  VMAP y0[1]{1:32,4:8,8:1} <- r.a{1:32,4:8,8:1} | s0 s0 mul #1
  signal vector y0.full
  wait store y0.full
  ST b(3,0,0) <- y0[1]{1:32,4:8,8:1} #1
  release store y0.free
}

kernel third {
  buffer x0 gbuf f32[64] depth=1 @0
  buffer y0 gbuf f32[16] depth=2 @256
  buffer r.c gbuf f32[64] depth=1 @384
  buffer r.s gbuf f32[32] depth=1 @640
  token x0.free 1
  token x0.full 0
  token y0.free 2
  token y0.full 0
  token "600.store>500.vector" 1
  token "500.vector>600.store" 0
  wait vector "600.store>500.vector"
  wait load x0.free
  LD x0{2:32,4:8,8:1} <- b(0,0,0) #2
  signal load x0.full
  wait vector x0.full
  VMAP r.c{2:32,4:8,8:1} <- x0{2:32,4:8,8:1} | s0 1 add #2
  release vector x0.free
  signal vector "500.vector>600.store"
  wait store "500.vector>600.store"
  ST c(0,0,0) <- r.c{2:32,4:8,8:1} #2
  signal store "600.store>500.vector"
  loop i0 2 {
    loop i1 2 {
      VRED sum axes=[0] r.s{1:0,2:8,8:1}@16*i0 <- r.c{1:32,2:8,8:1}@16*i0+32*i1 | s0 add=i1 #3
    }
  }
  wait vector "600.store>500.vector"
  wait load x0.free
  LD x0{2:32,4:8,8:1} <- b(2,0,0) #2
  signal load x0.full
  wait vector x0.full
  VMAP r.c{2:32,4:8,8:1} <- x0{2:32,4:8,8:1} | s0 1 add #2
  release vector x0.free
  signal vector "500.vector>600.store"
  wait store "500.vector>600.store"
  ST c(2,0,0) <- r.c{2:32,4:8,8:1} #2
  signal store "600.store>500.vector"
  loop i2 2 {
    loop i3 2 {
      VRED sum axes=[0] r.s{1:0,2:8,8:1}@16*i2 <- r.c{1:32,2:8,8:1}@16*i2+32*i3 | s0 add=1 #3
    }
    wait vector y0.free
    VMAP y0[i2]{1:16,2:8,8:1} <- r.s{1:32,2:8,8:1}@16*i2 | s0 #3
    signal vector y0.full
    wait store y0.full
    ST s(0,2*i2,0) <- y0[i2]{1:16,2:8,8:1} #3
    release store y0.free
  }
}
