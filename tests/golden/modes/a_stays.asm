// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program gemm
machine tiny
dtype f32
accum f32
dram 896

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor a f32[10,9] input @0
tensor b f32[9,6] input @384
tensor matmul f32[10,6] value @640

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node matmul op=matmul phase=forward origin=""


kernel matmul {
  buffer v lbuf_v f32[16] depth=2 @0
  buffer h lbuf_h f32[32] depth=2 @0
  buffer pe pe f32[16] depth=2 @0
  buffer acc acc f32[32] depth=2 @0
  buffer moving gbuf f32[90] depth=1 @0
  buffer stationary gbuf f32[54] depth=1 @384
  buffer result gbuf f32[60] depth=1 @640
  token v.free 2
  token v.full 0
  token h.free 2
  token h.full 0
  token pe.free 2
  token pe.full 0
  token acc.free 2
  token acc.full 0
  token moving.free 1
  token moving.full 0
  token stationary.free 1
  token stationary.full 0
  token result.free 1
  token result.full 0
  wait load moving.free
  LD moving{10:9,9:1} <- a(0,0) #0
  signal load moving.full
  wait feed_v moving.full
  wait load stationary.free
  LD stationary{9:6,6:1} <- b(0,0) #0
  signal load stationary.full
  wait feed_h stationary.full
  wait drain result.free
  loop i0 2 {
    wait array acc.free
    wait feed_v v.free
    LdLBUF_V.FW v[i0] <- moving{9:1|10:9}<0:4,4*i0:4> #0
    signal feed_v v.full
    wait feed_h h.free
    LdLBUF_H.FW h[i0] <- stationary{6:1|9:6}<0:6,0:4> #0
    signal feed_h h.full
    wait shift v.full
    wait shift pe.free
    ShiftV.FW pe[i0] <- v[i0] k=4 n=4 #0
    release shift v.free
    signal shift pe.full
    wait array pe.full
    wait array h.full
    ExecGEMM.FW acc[i0] <- h[i0] * pe[i0] m=6 k=4 n=4 #0
    release array h.free
    release array pe.free
    wait feed_v v.free
    LdLBUF_V.FW v[i0+1] <- moving{9:1|10:9}<4:3,4*i0:4> #0
    signal feed_v v.full
    wait feed_h h.free
    LdLBUF_H.FW h[i0+1] <- stationary{6:1|9:6}<0:6,4:3> #0
    signal feed_h h.full
    wait shift v.full
    wait shift pe.free
    ShiftV.FW pe[i0+1] <- v[i0+1] k=3 n=4 #0
    release shift v.free
    signal shift pe.full
    wait array pe.full
    wait array h.full
    ExecGEMM.FW acc[i0] <- h[i0+1] * pe[i0+1] m=6 k=3 n=4 add=1 #0
    release array h.free
    release array pe.free
    wait feed_v v.free
    LdLBUF_V.HSW v[i0] <- moving{9:1|10:9}<7:2,4*i0:4> #0
    signal feed_v v.full
    wait feed_h h.free
    LdLBUF_H.HSW h[i0] <- stationary{6:1|9:6}<0:6,7:2> #0
    signal feed_h h.full
    wait shift v.full
    wait shift pe.free
    ShiftV.HSW pe[i0] <- v[i0] k=2 n=4 #0
    release shift v.free
    signal shift pe.full
    wait array pe.full
    wait array h.full
    ExecGEMM.HSW acc[i0] <- h[i0] * pe[i0] m=6 k=2 n=4 add=1 #0
    release array h.free
    release array pe.free
    signal array acc.full
    wait drain acc.full
    StLBUF.HSW result{6:1|10:6}<0:6,4*i0:4> <- acc[i0] #0
    release drain acc.free
  }
  wait array acc.free
  wait feed_v v.free
  LdLBUF_V.VSW v <- moving{9:1|10:9}<0:4,8:2> #0
  signal feed_v v.full
  wait feed_h h.free
  LdLBUF_H.VSW h <- stationary{6:1|9:6}<0:6,0:4> #0
  signal feed_h h.full
  wait shift v.full
  wait shift pe.free
  ShiftV.VSW pe <- v k=4 n=2 #0
  release shift v.free
  signal shift pe.full
  wait array pe.full
  wait array h.full
  ExecGEMM.VSW acc <- h * pe m=6 k=4 n=2 #0
  release array h.free
  release array pe.free
  wait feed_v v.free
  LdLBUF_V.VSW v[1] <- moving{9:1|10:9}<4:3,8:2> #0
  signal feed_v v.full
  wait feed_h h.free
  LdLBUF_H.VSW h[1] <- stationary{6:1|9:6}<0:6,4:3> #0
  signal feed_h h.full
  wait shift v.full
  wait shift pe.free
  ShiftV.VSW pe[1] <- v[1] k=3 n=2 #0
  release shift v.free
  signal shift pe.full
  wait array pe.full
  wait array h.full
  ExecGEMM.VSW acc <- h[1] * pe[1] m=6 k=3 n=2 add=1 #0
  release array h.free
  release array pe.free
  wait feed_v v.free
  LdLBUF_V.ISW v <- moving{9:1|10:9}<7:2,8:2> #0
  signal feed_v v.full
  wait feed_h h.free
  LdLBUF_H.ISW h <- stationary{6:1|9:6}<0:6,7:2> #0
  signal feed_h h.full
  wait shift v.full
  wait shift pe.free
  ShiftV.ISW pe <- v k=2 n=2 #0
  release shift v.free
  signal shift pe.full
  wait array pe.full
  wait array h.full
  ExecGEMM.ISW acc <- h * pe m=6 k=2 n=2 add=1 #0
  release array h.free
  release array pe.free
  signal array acc.full
  wait drain acc.full
  StLBUF.ISW result{6:1|10:6}<0:6,8:2> <- acc #0
  release drain acc.free
  signal drain result.full
  wait store result.full
  ST matmul(0,0) <- result{10:6,6:1} #0
  release store result.free
  release feed_h stationary.free
  release feed_v moving.free
}
