// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program conv_dx_stride
machine tiny
dtype f32
accum f32
dram 2112

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor dy f32[1,4,4,8] input @576
tensor w f32[4,4,3,3] input @0
tensor conv_dx f32[1,4,8,8] value @1088

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node conv_dx op=conv_dx phase=forward origin=""


kernel conv_dx {
  buffer v lbuf_v f32[16] depth=2 @0
  buffer h lbuf_h f32[32] depth=2 @0
  buffer pe pe f32[16] depth=2 @0
  buffer acc acc f32[32] depth=2 @0
  buffer moving gbuf f32[72] depth=2 @0
  buffer stationary gbuf f32[144] depth=1 @576
  buffer result gbuf f32[64] depth=2 @1152
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
  loop i0 2 {
    loop i1 2 {
      wait load moving.free
      LD moving[i1]{1:72,4:18,3:6,6:1} <- dy(0,0,2*i0,4*i1-1) #0
      signal load moving.full
      wait feed_h moving.full
      wait drain result.free
      wait array acc.free
      loop i2 3 {
        wait feed_v v.free
        LdLBUF_V v[i1+i2] <- stationary{4:36,3:-1|4:9}@5<4*i2:4,0:4> #0
        signal feed_v v.full
        wait feed_h h.free
        LdLBUF_H h[i1+i2] <- moving[i1]{2:6,4:1|4:18,3:1}<0:8,4*i2:4> #0
        signal feed_h h.full
        wait shift v.full
        wait shift pe.free
        ShiftV pe[i1+i2] <- v[i1+i2] k=4 n=4 #0
        release shift v.free
        signal shift pe.full
        wait array pe.full
        wait array h.full
        ExecGEMM acc <- h[i1+i2] * pe[i1+i2] m=8 k=4 n=4 add=i2 #0
        release array h.free
        release array pe.free
      }
      signal array acc.full
      wait drain acc.full
      StLBUF result[i1]{2:8,4:1|4:16}<0:8,0:4> <- acc #0
      release drain acc.free
      wait array acc.free
      loop i3 6 {
        wait feed_v v.free
        LdLBUF_V v[i1+i3+1] <- stationary{4:36,2:-6,3:-1|4:9}@8<4*i3:4,0:4> #0
        signal feed_v v.full
        wait feed_h h.free
        LdLBUF_H h[i1+i3+1] <- moving[i1]{2:6,4:1|4:18,2:6,3:1}<0:8,4*i3:4> #0
        signal feed_h h.full
        wait shift v.full
        wait shift pe.free
        ShiftV pe[i1+i3+1] <- v[i1+i3+1] k=4 n=4 #0
        release shift v.free
        signal shift pe.full
        wait array pe.full
        wait array h.full
        ExecGEMM acc[1] <- h[i1+i3+1] * pe[i1+i3+1] m=8 k=4 n=4 add=i3 #0
        release array h.free
        release array pe.free
      }
      signal array acc.full
      wait drain acc.full
      StLBUF result[i1]{2:8,4:1|4:16}@4<0:8,0:4> <- acc[1] #0
      release drain acc.free
      signal drain result.full
      wait store result.full
      ST conv_dx(0,0,4*i0,4*i1) <- result[i1]{1:64,4:16,4:4,4:1} #0
      release store result.free
      release feed_h moving.free
    }
  }
  release feed_v stationary.free
}
