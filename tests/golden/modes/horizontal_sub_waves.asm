// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program gemm
machine tiny
dtype f32
accum f32
dram 256

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor a f32[8,2] input @0
tensor b f32[2,4] input @64
tensor matmul f32[8,4] value @128

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node matmul op=matmul phase=forward origin=""


kernel matmul {
  buffer v lbuf_v f32[16] depth=2 @0
  buffer h lbuf_h f32[32] depth=2 @0
  buffer pe pe f32[16] depth=2 @0
  buffer acc acc f32[32] depth=2 @0
  buffer moving gbuf f32[16] depth=1 @0
  buffer stationary gbuf f32[8] depth=1 @64
  buffer result gbuf f32[32] depth=1 @128
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
  LD moving{8:2,2:1} <- a(0,0) #0
  signal load moving.full
  wait feed_h moving.full
  wait load stationary.free
  LD stationary{2:4,4:1} <- b(0,0) #0
  signal load stationary.full
  wait feed_v stationary.full
  wait drain result.free
  wait array acc.free
  wait feed_v v.free
  LdLBUF_V.HSW v <- stationary{2:4|4:1}<0:2,0:4> #0
  signal feed_v v.full
  wait feed_h h.free
  LdLBUF_H.HSW h <- moving{8:2|2:1}<0:8,0:2> #0
  signal feed_h h.full
  wait shift v.full
  wait shift pe.free
  ShiftV.HSW pe <- v k=2 n=4 #0
  release shift v.free
  signal shift pe.full
  wait array pe.full
  wait array h.full
  ExecGEMM.HSW acc <- h * pe m=8 k=2 n=4 #0
  release array h.free
  release array pe.free
  signal array acc.full
  wait drain acc.full
  StLBUF.HSW result{8:4|4:1}<0:8,0:4> <- acc #0
  release drain acc.free
  signal drain result.full
  wait store result.full
  ST matmul(0,0) <- result{8:4,4:1} #0
  release store result.free
  release feed_v stationary.free
  release feed_h moving.free
}
