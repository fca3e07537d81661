// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program moments
machine tiny
dtype f32
accum f32
dram 9344

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor x f32[8,2,12,12] input @0
tensor moments f32[1,2,1,1] value @9216
tensor moments.1 f32[1,2,1,1] value @9280

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node moments op=moments phase=forward origin=""


kernel moments {
  buffer mean gbuf f32[2] depth=1 @0
  buffer m2 gbuf f32[2] depth=1 @64
  buffer part gbuf f32[2] depth=1 @128
  buffer delta gbuf f32[2] depth=1 @192
  buffer x gbuf f32[288] depth=2 @256
  buffer y0 gbuf f32[2] depth=2 @2560
  buffer y1 gbuf f32[2] depth=2 @2624
  token mean.free 1
  token mean.full 0
  token m2.free 1
  token m2.full 0
  token part.free 1
  token part.full 0
  token delta.free 1
  token delta.full 0
  token x.free 2
  token x.full 0
  token y0.free 2
  token y0.full 0
  token y1.free 2
  token y1.full 0
  wait vector mean.free
  wait vector m2.free
  wait vector part.free
  wait vector delta.free
  VMAP mean{1:2,2:1,1:1,1:1} <- | 0 #0
  VMAP m2{1:2,2:1,1:1,1:1} <- | 0 #0
  loop i0 8 {
    wait load x.free
    LD x[i0]{1:288,2:144,12:12,12:1} <- x(i0,0,0,0) #0
    signal load x.full
    wait vector x.full
    VRED sum axes=[0,2,3] part{1:0,2:1,12:0,12:0} <- x[i0]{1:288,2:144,12:12,12:1} | s0 #0
    VMAP part{1:2,2:1,1:1,1:1} <- part{1:2,2:1,1:1,1:1} | s0 144 div #0
    VRED sum axes=[0,2,3] delta{1:0,2:1,12:0,12:0} <- x[i0]{1:288,2:144,12:12,12:1} part{1:0,2:1,12:0,12:0} | s0 s1 sub s0 s1 sub mul #0
    release vector x.free
    VMAP m2{1:2,2:1,1:1,1:1} <- m2{1:2,2:1,1:1,1:1} delta{1:2,2:1,1:1,1:1} | s0 s1 add #0
    VMAP delta{1:2,2:1,1:1,1:1} <- part{1:2,2:1,1:1,1:1} mean{1:2,2:1,1:1,1:1} | s0 s1 sub #0
    VMAP m2{1:2,2:1,1:1,1:1} <- m2{1:2,2:1,1:1,1:1} delta{1:2,2:1,1:1,1:1} | s0 s1 s1 mul k0 mul k1 k0 k1 add div mul add | 144*i0,144 #0
    VMAP mean{1:2,2:1,1:1,1:1} <- mean{1:2,2:1,1:1,1:1} delta{1:2,2:1,1:1,1:1} | s0 s1 k1 k0 k1 add div mul add | 144*i0,144 #0
  }
  wait vector y0.free
  VMAP y0{1:2,2:1,1:1,1:1} <- mean{1:2,2:1,1:1,1:1} | s0 #0
  signal vector y0.full
  wait store y0.full
  ST moments(0,0,0,0) <- y0{1:2,2:1,1:1,1:1} #0
  release store y0.free
  wait vector y1.free
  VMAP y1{1:2,2:1,1:1,1:1} <- m2{1:2,2:1,1:1,1:1} | s0 1152 div #0
  signal vector y1.full
  wait store y1.full
  ST moments.1(0,0,0,0) <- y1{1:2,2:1,1:1,1:1} #0
  release store y1.free
  signal vector mean.full
  wait vector mean.full
  release vector mean.free
  signal vector m2.full
  wait vector m2.full
  release vector m2.free
  signal vector part.full
  wait vector part.full
  release vector part.free
  signal vector delta.full
  wait vector delta.full
  release vector delta.free
}
