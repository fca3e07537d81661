// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program update_in_place
machine tiny
dtype f32
accum f32
dram 1536

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor w f32[3,40] parameter @1024
tensor v f32[3,40] state @512
tensor g f32[3,40] input @0
tensor w2 f32[3,40] value @1024
tensor v2 f32[3,40] value @512

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node sgd op=map phase=forward origin=""


kernel sgd {
  buffer x0 gbuf f32[80] depth=2 @0
  buffer x1 gbuf f32[80] depth=2 @640
  buffer x2 gbuf f32[80] depth=2 @1280
  buffer y0 gbuf f32[80] depth=2 @1920
  buffer y1 gbuf f32[80] depth=2 @2560
  token x0.free 2
  token x0.full 0
  token x1.free 2
  token x1.full 0
  token x2.free 2
  token x2.full 0
  token y0.free 2
  token y0.full 0
  token y1.free 2
  token y1.full 0
  loop i0 2 {
    wait load x0.free
    LD x0[i0]{min(2,3-2*i0):40,40:1} <- w(2*i0,0) #0
    signal load x0.full
    wait vector x0.full
    wait load x1.free
    LD x1[i0]{min(2,3-2*i0):40,40:1} <- g(2*i0,0) #0
    signal load x1.full
    wait vector x1.full
    wait load x2.free
    LD x2[i0]{min(2,3-2*i0):40,40:1} <- v(2*i0,0) #0
    signal load x2.full
    wait vector x2.full
    wait vector y0.free
    VMAP y0[i0]{min(2,3-2*i0):40,40:1} <- x0[i0]{min(2,3-2*i0):40,40:1} x1[i0]{min(2,3-2*i0):40,40:1} x2[i0]{min(2,3-2*i0):40,40:1} | s0 0.1 0.9 s2 mul s1 add mul sub #0
    signal vector y0.full
    wait store y0.full
    ST w2(2*i0,0) <- y0[i0]{min(2,3-2*i0):40,40:1} #0
    release store y0.free
    wait vector y1.free
    VMAP y1[i0]{min(2,3-2*i0):40,40:1} <- x0[i0]{min(2,3-2*i0):40,40:1} x1[i0]{min(2,3-2*i0):40,40:1} x2[i0]{min(2,3-2*i0):40,40:1} | 0.9 s2 mul s1 add #0
    signal vector y1.full
    wait store y1.full
    ST v2(2*i0,0) <- y1[i0]{min(2,3-2*i0):40,40:1} #0
    release store y1.free
    release vector x0.free
    release vector x1.free
    release vector x2.free
  }
}
