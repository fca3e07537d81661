// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program conv_on_lanes
machine tiny
dtype f32
accum f32
dram 1408

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor x f32[2,4,6,4] input @0
tensor w f32[4,1,3,3] input @768
tensor b f32[4] input @960
tensor conv f32[2,4,3,4] value @1024

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node conv op=conv phase=forward origin=""


kernel conv {
  buffer moving gbuf f32[168] depth=2 @0
  buffer stationary gbuf f32[36] depth=1 @1344
  buffer bias gbuf f32[4] depth=1 @1536
  buffer result gbuf f32[48] depth=2 @1600
  token moving.free 2
  token moving.full 0
  token stationary.free 1
  token stationary.full 0
  token bias.free 1
  token bias.full 0
  token result.free 2
  token result.full 0
  wait load stationary.free
  LD stationary{4:9,1:9,3:3,3:1} <- w(0,0,0,0) #0
  signal load stationary.full
  wait vector stationary.full
  wait load bias.free
  LD bias{4:1} <- b(0) #0
  signal load bias.full
  wait vector bias.full
  loop i0 2 {
    wait load moving.free
    LD moving[i0]{1:168,4:42,7:6,6:1} <- x(i0,0,-1,-1) #0
    signal load moving.full
    wait vector moving.full
    wait vector result.free
    VMAP result[i0]{4:12,3:4,4:1} <- bias{4:1,3:0,4:0} | s0 #0
    VRED sum axes=[3,4] result[i0]{4:12,3:4,4:1,3:0,3:0} <- moving[i0]{4:42,3:12,4:1,3:6,3:1} stationary{4:9,3:0,4:0,3:3,3:1} | s0 s1 mul add=1 #0
    signal vector result.full
    wait store result.full
    ST conv(i0,0,0,0) <- result[i0]{1:48,4:12,3:4,4:1} #0
    release store result.free
    release vector moving.free
  }
  release vector bias.free
  release vector stationary.free
}
