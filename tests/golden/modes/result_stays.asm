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
  wait feed_h moving.full
  wait load stationary.free
  LD stationary{9:6,6:1} <- b(0,0) #0
  signal load stationary.full
  wait feed_v stationary.full
  wait drain result.free
  loop i0 2 {
    wait array acc.free
    loop i1 2 {
      wait feed_v v.free
      LdLBUF_V.OS v[i0+i1] <- stationary{9:6|6:1}<4*i1:4,0:4> #0
      signal feed_v v.full
      wait feed_h h.free
      LdLBUF_H.OS h[i0+i1] <- moving{9:1|10:9}<4*i1:4,4*i0:4> #0
      signal feed_h h.full
      wait array v.full
      wait array h.full
      ExecOS.OS acc[i0] <- h[i0+i1] * v[i0+i1] m=4 k=4 n=4 add=i1 #0
      release array h.free
      release array v.free
    }
    wait feed_v v.free
    LdLBUF_V.OS v[i0] <- stationary{9:6|6:1}<8:1,0:4> #0
    signal feed_v v.full
    wait feed_h h.free
    LdLBUF_H.OS h[i0] <- moving{9:1|10:9}<8:1,4*i0:4> #0
    signal feed_h h.full
    wait array v.full
    wait array h.full
    ExecOS.OS acc[i0] <- h[i0] * v[i0] m=4 k=1 n=4 add=1 #0
    release array h.free
    release array v.free
    signal array acc.full
    wait drain acc.full
    StLBUF.OS result{10:6|6:1}<4*i0:4,0:4> <- acc[i0] #0
    release drain acc.free
  }
  wait array acc.free
  loop i2 2 {
    wait feed_v v.free
    LdLBUF_V.OS v[i2] <- stationary{9:6|6:1}<4*i2:4,0:4> #0
    signal feed_v v.full
    wait feed_h h.free
    LdLBUF_H.OS h[i2] <- moving{9:1|10:9}<4*i2:4,8:2> #0
    signal feed_h h.full
    wait array v.full
    wait array h.full
    ExecOS.OS acc <- h[i2] * v[i2] m=2 k=4 n=4 add=i2 #0
    release array h.free
    release array v.free
  }
  wait feed_v v.free
  LdLBUF_V.OS v <- stationary{9:6|6:1}<8:1,0:4> #0
  signal feed_v v.full
  wait feed_h h.free
  LdLBUF_H.OS h <- moving{9:1|10:9}<8:1,8:2> #0
  signal feed_h h.full
  wait array v.full
  wait array h.full
  ExecOS.OS acc <- h * v m=2 k=1 n=4 add=1 #0
  release array h.free
  release array v.free
  signal array acc.full
  wait drain acc.full
  StLBUF.OS result{10:6|6:1}<8:2,0:4> <- acc #0
  release drain acc.free
  loop i3 2 {
    wait array acc.free
    loop i4 2 {
      wait feed_v v.free
      LdLBUF_V.OS v[i3+i4+1] <- stationary{9:6|6:1}<4*i4:4,4:2> #0
      signal feed_v v.full
      wait feed_h h.free
      LdLBUF_H.OS h[i3+i4+1] <- moving{9:1|10:9}<4*i4:4,4*i3:4> #0
      signal feed_h h.full
      wait array v.full
      wait array h.full
      ExecOS.OS acc[i3+1] <- h[i3+i4+1] * v[i3+i4+1] m=4 k=4 n=2 add=i4 #0
      release array h.free
      release array v.free
    }
    wait feed_v v.free
    LdLBUF_V.OS v[i3+1] <- stationary{9:6|6:1}<8:1,4:2> #0
    signal feed_v v.full
    wait feed_h h.free
    LdLBUF_H.OS h[i3+1] <- moving{9:1|10:9}<8:1,4*i3:4> #0
    signal feed_h h.full
    wait array v.full
    wait array h.full
    ExecOS.OS acc[i3+1] <- h[i3+1] * v[i3+1] m=4 k=1 n=2 add=1 #0
    release array h.free
    release array v.free
    signal array acc.full
    wait drain acc.full
    StLBUF.OS result{10:6|6:1}<4*i3:4,4:2> <- acc[i3+1] #0
    release drain acc.free
  }
  wait array acc.free
  loop i5 2 {
    wait feed_v v.free
    LdLBUF_V.OS v[i5+1] <- stationary{9:6|6:1}<4*i5:4,4:2> #0
    signal feed_v v.full
    wait feed_h h.free
    LdLBUF_H.OS h[i5+1] <- moving{9:1|10:9}<4*i5:4,8:2> #0
    signal feed_h h.full
    wait array v.full
    wait array h.full
    ExecOS.OS acc[1] <- h[i5+1] * v[i5+1] m=2 k=4 n=2 add=i5 #0
    release array h.free
    release array v.free
  }
  wait feed_v v.free
  LdLBUF_V.OS v[1] <- stationary{9:6|6:1}<8:1,4:2> #0
  signal feed_v v.full
  wait feed_h h.free
  LdLBUF_H.OS h[1] <- moving{9:1|10:9}<8:1,8:2> #0
  signal feed_h h.full
  wait array v.full
  wait array h.full
  ExecOS.OS acc[1] <- h[1] * v[1] m=2 k=1 n=2 add=1 #0
  release array h.free
  release array v.free
  signal array acc.full
  wait drain acc.full
  StLBUF.OS result{10:6|6:1}<8:2,4:2> <- acc[1] #0
  release drain acc.free
  signal drain result.full
  wait store result.full
  ST matmul(0,0) <- result{10:6,6:1} #0
  release store result.free
  release feed_v stationary.free
  release feed_h moving.free
}
