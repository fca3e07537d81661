// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program conv_padding
machine tiny
dtype f32
accum f32
dram 1536

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor x f32[1,3,6,6] input @448
tensor w f32[4,3,3,3] input @0
tensor bias f32[4] input @896
tensor conv f32[1,4,6,6] value @960

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node conv op=conv phase=forward origin=""


kernel conv {
  buffer v lbuf_v f32[16] depth=2 @0
  buffer h lbuf_h f32[32] depth=2 @0
  buffer pe pe f32[16] depth=2 @0
  buffer acc acc f32[32] depth=2 @0
  buffer moving gbuf f32[96] depth=2 @0
  buffer stationary gbuf f32[108] depth=1 @768
  buffer bias gbuf f32[4] depth=1 @1216
  buffer result gbuf f32[48] depth=2 @1280
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
  token bias.free 1
  token bias.full 0
  token result.free 2
  token result.full 0
  wait load stationary.free
  LD stationary{4:27,3:9,3:3,3:1} <- w(0,0,0,0) #0
  signal load stationary.full
  wait feed_v stationary.full
  wait load bias.free
  LD bias{4:1} <- bias(0) #0
  signal load bias.full
  wait drain bias.full
  loop i0 3 {
    wait load moving.free
    LD moving[i0]{1:96,3:32,8:4,4:1} <- x(0,0,-1,2*i0-1) #0
    signal load moving.full
    wait feed_h moving.full
    wait drain result.free
    loop i1 2 {
      wait array acc.free
      loop i2 7 {
        wait feed_v v.free
        LdLBUF_V v[i1+i2] <- stationary{27:1|4:27}<4*i2:min(4,27-4*i2),0:4> #0
        signal feed_v v.full
        wait feed_h h.free
        LdLBUF_H h[i1+i2] <- moving[i0]{6:4,2:1|3:32,3:4,3:1}<8*i1:min(8,12-8*i1),4*i2:min(4,27-4*i2)> #0
        signal feed_h h.full
        wait shift v.full
        wait shift pe.free
        ShiftV pe[i1+i2] <- v[i1+i2] k=min(4,27-4*i2) n=4 #0
        release shift v.free
        signal shift pe.full
        wait array pe.full
        wait array h.full
        ExecGEMM acc[i1] <- h[i1+i2] * pe[i1+i2] m=min(8,12-8*i1) k=min(4,27-4*i2) n=4 add=i2 #0
        release array h.free
        release array pe.free
      }
      signal array acc.full
      wait drain acc.full
      StLBUF result[i0]{12:1|4:12}<8*i1:min(8,12-8*i1),0:4> <- acc[i1] bias=bias{1:1|4:1}<0:1,0:4> #0
      release drain acc.free
    }
    signal drain result.full
    wait store result.full
    ST conv(0,0,0,2*i0) <- result[i0]{1:48,4:12,6:2,2:1} #0
    release store result.free
    release feed_h moving.free
  }
  release drain bias.free
  release feed_v stationary.free
}
