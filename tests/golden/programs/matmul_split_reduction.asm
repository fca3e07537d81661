// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program matmul_split_reduction
machine tiny
dtype f32
accum f32
dram 98432

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor x f32[8,2048] input @0
tensor w f32[2048,4] input @65536
tensor matmul f32[8,4] value @98304

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node matmul op=matmul phase=forward origin=""


kernel matmul {
  buffer v lbuf_v f32[16] depth=2 @0
  buffer h lbuf_h f32[32] depth=2 @0
  buffer pe pe f32[16] depth=2 @0
  buffer acc acc f32[32] depth=2 @0
  buffer moving gbuf f32[64] depth=2 @0
  buffer stationary gbuf f32[32] depth=2 @512
  buffer result gbuf f32[32] depth=1 @768
  token v.free 2
  token v.full 0
  token h.free 2
  token h.full 0
  token pe.free 2
  token pe.full 0
  token acc.free 2
  token acc.full 0
  token moving.free 2
  token moving.full 0
  token stationary.free 2
  token stationary.full 0
  token result.free 1
  token result.full 0
  wait drain result.free
  loop i0 256 {
    wait load moving.free
    LD moving[i0]{8:8,8:1} <- x(0,8*i0) #0
    signal load moving.full
    wait feed_h moving.full
    wait load stationary.free
    LD stationary[i0]{8:4,4:1} <- w(8*i0,0) #0
    signal load stationary.full
    wait feed_v stationary.full
    wait array acc.free
    loop i1 2 {
      wait feed_v v.free
      LdLBUF_V v[i1] <- stationary[i0]{8:4|4:1}<4*i1:4,0:4> #0
      signal feed_v v.full
      wait feed_h h.free
      LdLBUF_H h[i1] <- moving[i0]{8:8|8:1}<0:8,4*i1:4> #0
      signal feed_h h.full
      wait shift v.full
      wait shift pe.free
      ShiftV pe[i1] <- v[i1] k=4 n=4 #0
      release shift v.free
      signal shift pe.full
      wait array pe.full
      wait array h.full
      ExecGEMM acc[i0] <- h[i1] * pe[i1] m=8 k=4 n=4 add=i1 #0
      release array h.free
      release array pe.free
    }
    signal array acc.full
    wait drain acc.full
    StLBUF result{8:4|4:1}<0:8,0:4> <- acc[i0] add=8*i0 #0
    release drain acc.free
    release feed_v stationary.free
    release feed_h moving.free
  }
  signal drain result.full
  wait store result.full
  ST matmul(0,0) <- result{8:4,4:1} #0
  release store result.free
}
