// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program conv_row_tiles
machine tiny
dtype f32
accum f32
dram 19008

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor x f32[1,4,24,24] input @0
tensor w f32[4,4,3,3] input @9216
tensor conv f32[1,4,24,24] value @9792

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node conv op=conv phase=forward origin=""


kernel conv {
  buffer v lbuf_v f32[16] depth=2 @0
  buffer h lbuf_h f32[32] depth=2 @0
  buffer pe pe f32[16] depth=2 @0
  buffer acc acc f32[32] depth=2 @0
  buffer moving gbuf f32[400] depth=2 @0
  buffer stationary gbuf f32[144] depth=1 @3200
  buffer result gbuf f32[256] depth=2 @3776
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
  token stationary.free 1
  token stationary.full 0
  token result.free 2
  token result.full 0
  wait load stationary.free
  LD stationary{4:36,4:9,3:3,3:1} <- w(0,0,0,0) #0
  signal load stationary.full
  wait feed_v stationary.full
  loop i0 3 {
    loop i1 3 {
      wait load moving.free
      LD moving[i0+i1]{1:400,4:100,10:10,10:1} <- x(0,0,8*i0-1,8*i1-1) #0
      signal load moving.full
      wait feed_h moving.full
      wait drain result.free
      loop i2 8 {
        wait array acc.free
        loop i3 9 {
          wait feed_v v.free
          LdLBUF_V v[i2+i3] <- stationary{36:1|4:36}<4*i3:4,0:4> #0
          signal feed_v v.full
          wait feed_h h.free
          LdLBUF_H h[i2+i3] <- moving[i0+i1]{8:10,8:1|4:100,3:10,3:1}<8*i2:8,4*i3:4> #0
          signal feed_h h.full
          wait shift v.full
          wait shift pe.free
          ShiftV pe[i2+i3] <- v[i2+i3] k=4 n=4 #0
          release shift v.free
          signal shift pe.full
          wait array pe.full
          wait array h.full
          ExecGEMM acc[i2] <- h[i2+i3] * pe[i2+i3] m=8 k=4 n=4 add=i3 #0
          release array h.free
          release array pe.free
        }
        signal array acc.full
        wait drain acc.full
        StLBUF result[i0+i1]{64:1|4:64}<8*i2:8,0:4> <- acc[i2] #0
        release drain acc.free
      }
      signal drain result.full
      wait store result.full
      ST conv(0,0,8*i0,8*i1) <- result[i0+i1]{1:256,4:64,8:8,8:1} #0
      release store result.free
      release feed_h moving.free
    }
  }
  release feed_v stationary.free
}
