// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program conv_dw_accumulated
machine tiny
dtype f32
accum f32
dram 37440

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor x f32[8,4,12,12] input @18432
tensor dy f32[8,4,12,12] input @0
tensor conv_dw f32[4,4,3,3] value @36864

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node conv_dw op=conv_dw phase=forward origin=""


kernel conv_dw {
  buffer v lbuf_v f32[16] depth=2 @0
  buffer h lbuf_h f32[32] depth=2 @0
  buffer pe pe f32[16] depth=2 @0
  buffer acc acc f32[32] depth=2 @0
  buffer moving gbuf f32[448] depth=2 @0
  buffer stationary gbuf f32[288] depth=2 @3584
  buffer result gbuf f32[144] depth=1 @5888
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
  loop i0 8 {
    loop i1 2 {
      wait load moving.free
      LD moving[i1]{1:448,4:112,14:8,8:1} <- x(i0,0,-1,6*i1-1) #0
      signal load moving.full
      wait feed_h moving.full
      wait load stationary.free
      LD stationary[i1]{1:288,4:72,12:6,6:1} <- dy(i0,0,0,6*i1) #0
      signal load stationary.full
      wait feed_v stationary.full
      loop i2 5 {
        wait array acc.free
        loop i3 18 {
          wait feed_v v.free
          LdLBUF_V v[i3] <- stationary[i1]{72:1|4:72}<4*i3:4,0:4> #0
          signal feed_v v.full
          wait feed_h h.free
          LdLBUF_H h[i3] <- moving[i1]{4:112,3:8,3:1|12:8,6:1}<8*i2:min(8,36-8*i2),4*i3:4> #0
          signal feed_h h.full
          wait shift v.full
          wait shift pe.free
          ShiftV pe[i3] <- v[i3] k=4 n=4 #0
          release shift v.free
          signal shift pe.full
          wait array pe.full
          wait array h.full
          ExecGEMM acc[i1+i2] <- h[i3] * pe[i3] m=min(8,36-8*i2) k=4 n=4 add=i3 #0
          release array h.free
          release array pe.free
        }
        signal array acc.full
        wait drain acc.full
        StLBUF result{36:1|4:36}<8*i2:min(8,36-8*i2),0:4> <- acc[i1+i2] add=i0+6*i1 #0
        release drain acc.free
      }
      release feed_v stationary.free
      release feed_h moving.free
    }
  }
  signal drain result.full
  wait store result.full
  ST conv_dw(0,0,0,0) <- result{4:36,4:9,3:3,3:1} #0
  release store result.free
}
