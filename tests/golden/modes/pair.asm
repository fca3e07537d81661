// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program connected
machine tiny
dtype f32
accum f32
dram 960

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor dy f32[10,8] input @0
tensor x f32[10,4] input @320
tensor w f32[8,4] input @512
tensor matmul f32[10,4] value @640
tensor matmul.1 f32[8,4] value @832

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node matmul op=matmul phase=backward origin=""
node matmul.1 op=matmul phase=backward origin=""


kernel matmul {
  buffer v lbuf_v f32[16] depth=1 @0
  buffer x lbuf_v f32[16] depth=1 @0
  buffer h lbuf_h f32[32] depth=2 @0
  buffer pe pe f32[16] depth=2 @0
  buffer acc acc f32[16] depth=1 @0
  buffer acc.dw acc f32[16] depth=3 @0
  buffer moving gbuf f32[32] depth=2 @0
  buffer stationary gbuf f32[32] depth=1 @256
  buffer input gbuf f32[16] depth=2 @384
  buffer gradient gbuf f32[32] depth=1 @512
  buffer result gbuf f32[16] depth=2 @640
  token v.free 1
  token v.full 0
  token x.free 1
  token x.full 0
  token h.free 2
  token h.full 0
  token pe.free 2
  token pe.full 0
  token acc.free 1
  token acc.full 0
  token acc.dw.free 3
  token acc.dw.full 0
  token moving.free 2
  token moving.full 0
  token stationary.free 1
  token stationary.full 0
  token input.free 2
  token input.full 0
  token gradient.free 1
  token gradient.full 0
  token result.free 2
  token result.full 0
  wait load stationary.free
  LD stationary{8:4,4:1} <- w(0,0) #0
  signal load stationary.full
  wait feed_v stationary.full
  wait drain gradient.free
  loop i0 2 {
    wait load moving.free
    LD moving[i0]{4:8,8:1} <- dy(4*i0,0) #0
    signal load moving.full
    wait feed_h moving.full
    wait load input.free
    LD input[i0]{4:4,4:1} <- x(4*i0,0) #1
    signal load input.full
    wait feed_v input.full
    wait drain result.free
    wait feed_v v.free
    LdLBUF_V.PAIR v <- stationary{8:4|4:1}<0:4,0:4> #0
    signal feed_v v.full
    wait array acc.dw.free
    wait feed_h h.free
    LdLBUF_H.PAIR h <- moving[i0]{4:8|8:1}<0:4,0:4> #0
    signal feed_h h.full
    wait feed_v x.free
    LdLBUF_V.PAIR x <- input[i0]{4:4|4:1}<0:4,0:4> #1
    signal feed_v x.full
    wait array x.full
    wait shift v.full
    wait shift pe.free
    ShiftV.PAIR pe <- v k=4 n=4 #0
    release shift v.free
    signal shift pe.full
    wait array pe.full
    wait array acc.free
    wait array h.full
    ExecGEMM.PAIR acc <- h * pe m=4 k=4 n=4 #0
    ExecOS.PAIR acc.dw[2*i0] <- h * x m=4 k=4 n=4 #1
    release array h.free
    release array pe.free
    signal array acc.dw.full
    wait drain acc.dw.full
    StLBUF.PAIR gradient{8:4|4:1}<0:4,0:4> <- acc.dw[2*i0] add=4*i0 #1
    release drain acc.dw.free
    wait feed_v v.free
    LdLBUF_V.PAIR v <- stationary{8:4|4:1}<4:4,0:4> #0
    signal feed_v v.full
    wait array acc.dw.free
    wait feed_h h.free
    LdLBUF_H.PAIR h[1] <- moving[i0]{4:8|8:1}<0:4,4:4> #0
    signal feed_h h.full
    wait shift v.full
    wait shift pe.free
    ShiftV.PAIR pe[1] <- v k=4 n=4 #0
    release shift v.free
    signal shift pe.full
    wait array pe.full
    wait array h.full
    ExecGEMM.PAIR acc <- h[1] * pe[1] m=4 k=4 n=4 add=1 #0
    ExecOS.PAIR acc.dw[2*i0+1] <- h[1] * x m=4 k=4 n=4 #1
    release array h.free
    signal array acc.full
    wait drain acc.full
    StLBUF.PAIR result[i0]{4:4|4:1}<0:4,0:4> <- acc #0
    release drain acc.free
    release array pe.free
    signal array acc.dw.full
    wait drain acc.dw.full
    StLBUF.PAIR gradient{8:4|4:1}<4:4,0:4> <- acc.dw[2*i0+1] add=4*i0 #1
    release drain acc.dw.free
    release array x.free
    signal drain result.full
    wait store result.full
    ST matmul(4*i0,0) <- result[i0]{4:4,4:1} #0
    release store result.free
    release feed_v input.free
    release feed_h moving.free
  }
  wait load moving.free
  LD moving{2:8,8:1} <- dy(8,0) #0
  signal load moving.full
  wait feed_h moving.full
  wait load input.free
  LD input{2:4,4:1} <- x(8,0) #1
  signal load input.full
  wait feed_v input.full
  wait drain result.free
  wait feed_v v.free
  LdLBUF_V.PAIR v <- stationary{8:4|4:1}<0:4,0:4> #0
  signal feed_v v.full
  wait array acc.dw.free
  wait feed_h h.free
  LdLBUF_H.PAIR h <- moving{2:8|8:1}<0:2,0:4> #0
  signal feed_h h.full
  wait feed_v x.free
  LdLBUF_V.PAIR x <- input{2:4|4:1}<0:2,0:4> #1
  signal feed_v x.full
  wait array x.full
  wait shift v.full
  wait shift pe.free
  ShiftV.PAIR pe <- v k=4 n=4 #0
  release shift v.free
  signal shift pe.full
  wait array pe.full
  wait array acc.free
  wait array h.full
  ExecGEMM.PAIR acc <- h * pe m=2 k=4 n=4 #0
  ExecOS.PAIR acc.dw[1] <- h * x m=4 k=2 n=4 #1
  release array h.free
  release array pe.free
  signal array acc.dw.full
  wait drain acc.dw.full
  StLBUF.PAIR gradient{8:4|4:1}<0:4,0:4> <- acc.dw[1] add=8 #1
  release drain acc.dw.free
  wait feed_v v.free
  LdLBUF_V.PAIR v <- stationary{8:4|4:1}<4:4,0:4> #0
  signal feed_v v.full
  wait array acc.dw.free
  wait feed_h h.free
  LdLBUF_H.PAIR h[1] <- moving{2:8|8:1}<0:2,4:4> #0
  signal feed_h h.full
  wait shift v.full
  wait shift pe.free
  ShiftV.PAIR pe[1] <- v k=4 n=4 #0
  release shift v.free
  signal shift pe.full
  wait array pe.full
  wait array h.full
  ExecGEMM.PAIR acc <- h[1] * pe[1] m=2 k=4 n=4 add=1 #0
  ExecOS.PAIR acc.dw[2] <- h[1] * x m=4 k=2 n=4 #1
  release array h.free
  signal array acc.full
  wait drain acc.full
  StLBUF.PAIR result{2:4|4:1}<0:2,0:4> <- acc #0
  release drain acc.free
  release array pe.free
  signal array acc.dw.full
  wait drain acc.dw.full
  StLBUF.PAIR gradient{8:4|4:1}<4:4,0:4> <- acc.dw[2] add=8 #1
  release drain acc.dw.free
  release array x.free
  signal drain result.full
  wait store result.full
  ST matmul(8,0) <- result{2:4,4:1} #0
  release store result.free
  release feed_v input.free
  release feed_h moving.free
  signal drain gradient.full
  wait store gradient.full
  ST matmul.1(0,0) <- gradient{8:4,4:1} #1
  release store gradient.free
  release feed_v stationary.free
}
