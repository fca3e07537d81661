// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program carried
machine tiny
dtype f32
accum f32
dram 768

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor x f32[1,2,12,4] input @0
tensor p f32[1,2,12,4] value @384

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node relu op=map phase=forward origin=""
node pool op=window_sum phase=forward origin=""


kernel relu {
  buffer x0 gbuf f32[32] depth=1 @0
  buffer x gbuf f32[40] depth=2 @128
  buffer y0 gbuf f32[24] depth=2 @448
  buffer r.t gbuf f32[48] depth=1 @640
  buffer r.t/above gbuf f32[16] depth=1 @832
  token x0.free 1
  token x0.full 0
  token x.free 2
  token x.full 0
  token y0.free 2
  token y0.full 0
  wait load x0.free
  LD x0{1:32,2:16,4:4,4:1} <- x(0,0,0,0) #0
  signal load x0.full
  wait vector x0.full
  VMAP r.t{1:32,2:16,4:4,4:1} <- x0{1:32,2:16,4:4,4:1} | s0 0 max #0
  release vector x0.free
  VMAP r.t/above{1:16,2:8,2:4,4:1} <- r.t{1:32,2:16,2:4,4:1}@8 | s0 #0
  wait vector x.free
  VMAP x{40:1} <- | 0 #1
  VMAP x{1:40,2:20,4:4,4:1}@4 <- r.t{1:32,2:16,4:4,4:1} | s0 #1
  signal vector x.full
  wait vector x.full
  wait vector y0.free
  VRED sum axes=[4] y0{1:24,2:12,3:4,4:1,3:0} <- x{1:40,2:20,3:4,4:1,3:4} | s0 #1
  signal vector y0.full
  wait store y0.full
  ST p(0,0,0,0) <- y0{1:24,2:12,3:4,4:1} #1
  release store y0.free
  release vector x.free
  loop i0 2 {
    VMAP r.t{1:40,2:20,2:4,4:1} <- r.t/above{1:16,2:8,2:4,4:1} | s0 #0
    wait load x0.free
    LD x0{1:24,2:12,3:4,4:1} <- x(0,0,3*i0+4,0) #0
    signal load x0.full
    wait vector x0.full
    VMAP r.t{1:40,2:20,3:4,4:1}@8 <- x0{1:24,2:12,3:4,4:1} | s0 0 max #0
    release vector x0.free
    VMAP r.t/above{1:16,2:8,2:4,4:1} <- r.t{1:40,2:20,2:4,4:1}@12 | s0 #0
    wait vector y0.free
    VRED sum axes=[4] y0[i0+1]{1:24,2:12,3:4,4:1,3:0} <- r.t{1:40,2:20,3:4,4:1,3:4} | s0 #1
    signal vector y0.full
    wait store y0.full
    ST p(0,0,3*i0+3,0) <- y0[i0+1]{1:24,2:12,3:4,4:1} #1
    release store y0.free
  }
  VMAP r.t{1:32,2:16,2:4,4:1} <- r.t/above{1:16,2:8,2:4,4:1} | s0 #0
  wait load x0.free
  LD x0{1:16,2:8,2:4,4:1} <- x(0,0,10,0) #0
  signal load x0.full
  wait vector x0.full
  VMAP r.t{1:32,2:16,2:4,4:1}@8 <- x0{1:16,2:8,2:4,4:1} | s0 0 max #0
  release vector x0.free
  wait vector x.free
  VMAP x[1]{40:1} <- | 0 #1
  VMAP x[1]{1:40,2:20,4:4,4:1} <- r.t{1:32,2:16,4:4,4:1} | s0 #1
  signal vector x.full
  wait vector x.full
  wait vector y0.free
  VRED sum axes=[4] y0[1]{1:24,2:12,3:4,4:1,3:0} <- x[1]{1:40,2:20,3:4,4:1,3:4} | s0 #1
  signal vector y0.full
  wait store y0.full
  ST p(0,0,9,0) <- y0[1]{1:24,2:12,3:4,4:1} #1
  release store y0.free
  release vector x.free
}
