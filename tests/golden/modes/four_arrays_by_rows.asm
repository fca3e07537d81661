// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program gemm
machine tiny
dtype f32
accum f32
dram 2112

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor a f32[30,9] input @0
tensor b f32[9,6] input @1088
tensor matmul f32[30,6] value @1344

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node matmul op=matmul phase=forward origin=""


kernel matmul {
  buffer v lbuf_v f32[64] depth=2 @0
  buffer h lbuf_h f32[128] depth=2 @0
  buffer pe pe f32[64] depth=2 @0
  buffer acc acc f32[128] depth=2 @0
  buffer moving gbuf f32[270] depth=1 @0
  buffer stationary gbuf f32[54] depth=1 @1088
  buffer result gbuf f32[180] depth=1 @1344
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
  LD moving{30:9,9:1} <- a(0,0) #0
  signal load moving.full
  wait feed_h moving.full
  wait load stationary.free
  LD stationary{9:6,6:1} <- b(0,0) #0
  signal load stationary.full
  wait feed_v stationary.full
  wait drain result.free
  wait array acc.free
  loop i0 2 {
    wait feed_v v.free
    LdLBUF_V.FW_4x1x1 v[i0] <- stationary{9:6|6:1}<4*i0:4,0:4> #0
    signal feed_v v.full
    wait feed_h h.free
    LdLBUF_H.FW_4x1x1 h[i0] <- moving{30:9|9:1}<0:30,4*i0:4> #0
    signal feed_h h.full
    wait shift v.full
    wait shift pe.free
    ShiftV.FW_4x1x1 pe[i0] <- v[i0] k=4 n=4 #0
    release shift v.free
    signal shift pe.full
    wait array pe.full
    wait array h.full
    ExecGEMM.FW_4x1x1 acc <- h[i0] * pe[i0] m=30 k=4 n=4 add=i0 #0
    release array h.free
    release array pe.free
  }
  wait feed_v v.free
  LdLBUF_V.FW_4x1x1 v <- stationary{9:6|6:1}<8:1,0:4> #0
  signal feed_v v.full
  wait feed_h h.free
  LdLBUF_H.FW_4x1x1 h <- moving{30:9|9:1}<0:30,8:1> #0
  signal feed_h h.full
  wait shift v.full
  wait shift pe.free
  ShiftV.FW_4x1x1 pe <- v k=1 n=4 #0
  release shift v.free
  signal shift pe.full
  wait array pe.full
  wait array h.full
  ExecGEMM.FW_4x1x1 acc <- h * pe m=30 k=1 n=4 add=1 #0
  release array h.free
  release array pe.free
  signal array acc.full
  wait drain acc.full
  StLBUF.FW_4x1x1 result{30:6|6:1}<0:30,0:4> <- acc #0
  release drain acc.free
  wait array acc.free
  loop i1 2 {
    wait feed_v v.free
    LdLBUF_V.FW_4x1x1 v[i1+1] <- stationary{9:6|6:1}<4*i1:4,4:2> #0
    signal feed_v v.full
    wait feed_h h.free
    LdLBUF_H.FW_4x1x1 h[i1+1] <- moving{30:9|9:1}<0:30,4*i1:4> #0
    signal feed_h h.full
    wait shift v.full
    wait shift pe.free
    ShiftV.FW_4x1x1 pe[i1+1] <- v[i1+1] k=4 n=2 #0
    release shift v.free
    signal shift pe.full
    wait array pe.full
    wait array h.full
    ExecGEMM.FW_4x1x1 acc[1] <- h[i1+1] * pe[i1+1] m=30 k=4 n=2 add=i1 #0
    release array h.free
    release array pe.free
  }
  wait feed_v v.free
  LdLBUF_V.FW_4x1x1 v[1] <- stationary{9:6|6:1}<8:1,4:2> #0
  signal feed_v v.full
  wait feed_h h.free
  LdLBUF_H.FW_4x1x1 h[1] <- moving{30:9|9:1}<0:30,8:1> #0
  signal feed_h h.full
  wait shift v.full
  wait shift pe.free
  ShiftV.FW_4x1x1 pe[1] <- v[1] k=1 n=2 #0
  release shift v.free
  signal shift pe.full
  wait array pe.full
  wait array h.full
  ExecGEMM.FW_4x1x1 acc[1] <- h[1] * pe[1] m=30 k=1 n=2 add=1 #0
  release array h.free
  release array pe.free
  signal array acc.full
  wait drain acc.full
  StLBUF.FW_4x1x1 result{30:6|6:1}<0:30,4:2> <- acc[1] #0
  release drain acc.free
  signal drain result.full
  wait store result.full
  ST matmul(0,0) <- result{30:6,6:1} #0
  release store result.free
  release feed_v stationary.free
  release feed_h moving.free
}
