// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program conv_gradients_on_lanes
machine tiny
dtype f32
accum f32
dram 2304

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor x f32[2,4,6,4] input @0
tensor w f32[4,1,3,3] input @1152
tensor dy f32[2,4,3,4] input @768
tensor conv_dx f32[2,4,6,4] value @1344
tensor conv_dw f32[4,1,3,3] value @2112

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node conv_dx op=conv_dx phase=forward origin=""
node conv_dw op=conv_dw phase=forward origin=""


kernel conv_dx {
  buffer moving gbuf f32[96] depth=2 @0
  buffer stationary gbuf f32[36] depth=1 @768
  buffer result gbuf f32[96] depth=2 @960
  token moving.free 2
  token moving.full 0
  token stationary.free 1
  token stationary.full 0
  token result.free 2
  token result.full 0
  wait load stationary.free
  LD stationary{4:9,1:9,3:3,3:1} <- w(0,0,0,0) #0
  signal load stationary.full
  wait vector stationary.full
  loop i0 2 {
    wait load moving.free
    LD moving[i0]{1:96,4:24,4:6,6:1} <- dy(i0,0,0,-1) #0
    signal load moving.full
    wait vector moving.full
    wait vector result.free
    VRED sum axes=[3] result[i0]{4:24,3:8,4:1,3:0} <- moving[i0]{4:24,3:6,4:1,3:1} stationary{4:9,3:0,4:0,3:-1}@5 | s0 s1 mul #0
    VRED sum axes=[3,4] result[i0]{4:24,3:8,4:1,2:0,3:0}@4 <- moving[i0]{4:24,3:6,4:1,2:6,3:1} stationary{4:9,3:0,4:0,2:-6,3:-1}@8 | s0 s1 mul #0
    signal vector result.full
    wait store result.full
    ST conv_dx(i0,0,0,0) <- result[i0]{1:96,4:24,6:4,4:1} #0
    release store result.free
    release vector moving.free
  }
  release vector stationary.free
}

kernel conv_dw {
  buffer moving gbuf f32[168] depth=2 @0
  buffer stationary gbuf f32[48] depth=2 @1344
  buffer result gbuf f32[36] depth=1 @1728
  token moving.free 2
  token moving.full 0
  token stationary.free 2
  token stationary.full 0
  token result.free 1
  token result.full 0
  wait vector result.free
  loop i0 2 {
    wait load moving.free
    LD moving[i0]{1:168,4:42,7:6,6:1} <- x(i0,0,-1,-1) #1
    signal load moving.full
    wait vector moving.full
    wait load stationary.free
    LD stationary[i0]{1:48,4:12,3:4,4:1} <- dy(i0,0,0,0) #1
    signal load stationary.full
    wait vector stationary.full
    VRED sum axes=[3,4] result{4:9,3:3,3:1,3:0,4:0} <- moving[i0]{4:42,3:6,3:1,3:12,4:1} stationary[i0]{4:12,3:0,3:0,3:4,4:1} | s0 s1 mul add=i0 #1
    release vector stationary.free
    release vector moving.free
  }
  signal vector result.full
  wait store result.full
  ST conv_dw(0,0,0,0) <- result{4:9,1:9,3:3,3:1} #1
  release store result.free
}
