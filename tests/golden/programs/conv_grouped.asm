// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program conv_grouped
machine tiny
dtype f32
accum f32
dram 1088

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor x f32[1,8,4,4] input @0
tensor w f32[8,2,1,1] input @512
tensor conv f32[1,8,4,4] value @576

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node conv op=conv phase=forward origin=""


kernel conv {
  buffer v lbuf_v f32[16] depth=2 @0
  buffer h lbuf_h f32[32] depth=2 @0
  buffer pe pe f32[16] depth=2 @0
  buffer acc acc f32[32] depth=2 @0
  buffer moving gbuf f32[16] depth=2 @0
  buffer stationary gbuf f32[4] depth=2 @128
  buffer result gbuf f32[16] depth=2 @192
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
  token result.free 2
  token result.full 0
  loop i0 4 {
    wait load stationary.free
    LD stationary[i0]{2:2,2:1,1:1,1:1} <- w(2*i0,0,0,0) #0
    signal load stationary.full
    wait feed_v stationary.full
    loop i1 2 {
      wait load moving.free
      LD moving[i1]{1:16,2:8,4:2,2:1} <- x(0,2*i0,0,2*i1) #0
      signal load moving.full
      wait feed_h moving.full
      wait drain result.free
      wait array acc.free
      wait feed_v v.free
      LdLBUF_V v[i1] <- stationary[i0]{2:1|2:2}<0:2,0:2> #0
      signal feed_v v.full
      wait feed_h h.free
      LdLBUF_H h[i1] <- moving[i1]{8:1|2:8}<0:8,0:2> #0
      signal feed_h h.full
      wait shift v.full
      wait shift pe.free
      ShiftV pe[i1] <- v[i1] k=2 n=2 #0
      release shift v.free
      signal shift pe.full
      wait array pe.full
      wait array h.full
      ExecGEMM acc[i1] <- h[i1] * pe[i1] m=8 k=2 n=2 #0
      release array h.free
      release array pe.free
      signal array acc.full
      wait drain acc.full
      StLBUF result[i1]{8:1|2:8}<0:8,0:2> <- acc[i1] #0
      release drain acc.free
      signal drain result.full
      wait store result.full
      ST conv(0,2*i0,0,2*i1) <- result[i1]{1:16,2:8,4:2,2:1} #0
      release store result.free
      release feed_h moving.free
    }
    release feed_v stationary.free
  }
}
