// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program matmul_bias
machine tiny
dtype f32
accum f32
dram 448

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor x f32[5,6] input @128
tensor w f32[4,6] input @0
tensor bias f32[4] input @256
tensor matmul f32[5,4] value @320

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node matmul op=matmul phase=forward origin=""


kernel matmul {
  buffer v lbuf_v f32[16] depth=2 @0
  buffer h lbuf_h f32[32] depth=2 @0
  buffer pe pe f32[16] depth=2 @0
  buffer acc acc f32[32] depth=2 @0
  buffer moving gbuf f32[30] depth=1 @0
  buffer stationary gbuf f32[24] depth=1 @128
  buffer bias gbuf f32[4] depth=1 @256
  buffer result gbuf f32[20] depth=1 @320
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
  token bias.free 1
  token bias.full 0
  token result.free 1
  token result.full 0
  wait load moving.free
  LD moving{5:6,6:1} <- x(0,0) #0
  signal load moving.full
  wait feed_h moving.full
  wait load stationary.free
  LD stationary{4:6,6:1} <- w(0,0) #0
  signal load stationary.full
  wait feed_v stationary.full
  wait load bias.free
  LD bias{4:1} <- bias(0) #0
  signal load bias.full
  wait drain bias.full
  wait drain result.free
  wait array acc.free
  loop i0 2 {
    wait feed_v v.free
    LdLBUF_V v[i0] <- stationary{6:1|4:6}<4*i0:min(4,6-4*i0),0:4> #0
    signal feed_v v.full
    wait feed_h h.free
    LdLBUF_H h[i0] <- moving{5:6|6:1}<0:5,4*i0:min(4,6-4*i0)> #0
    signal feed_h h.full
    wait shift v.full
    wait shift pe.free
    ShiftV pe[i0] <- v[i0] k=min(4,6-4*i0) n=4 #0
    release shift v.free
    signal shift pe.full
    wait array pe.full
    wait array h.full
    ExecGEMM acc <- h[i0] * pe[i0] m=5 k=min(4,6-4*i0) n=4 add=i0 #0
    release array h.free
    release array pe.free
  }
  signal array acc.full
  wait drain acc.full
  StLBUF result{5:4|4:1}<0:5,0:4> <- acc bias=bias{1:1|4:1}<0:1,0:4> #0
  release drain acc.free
  signal drain result.full
  wait store result.full
  ST matmul(0,0) <- result{5:4,4:1} #0
  release store result.free
  release drain bias.free
  release feed_v stationary.free
  release feed_h moving.free
}
