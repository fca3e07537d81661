// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program concat
machine tiny
dtype f32
accum f32
dram 576

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor x f32[2,3,4] input @192
tensor x2 f32[2,5,4] input @0
tensor concat f32[2,8,4] value @320

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node concat op=concat phase=forward origin=""


kernel concat {
  buffer t0 gbuf f32[24] depth=2 @0
  buffer t1 gbuf f32[40] depth=2 @192
  token t0.free 2
  token t0.full 0
  token t1.free 2
  token t1.full 0
  wait load t0.free
  LD t0{2:12,3:4,4:1} <- x(0,0,0) #0
  signal load t0.full
  wait store t0.full
  ST concat(0,0,0) <- t0{2:12,3:4,4:1} #0
  release store t0.free
  wait load t1.free
  LD t1{2:20,5:4,4:1} <- x2(0,0,0) #0
  signal load t1.full
  wait store t1.full
  ST concat(0,3,0) <- t1{2:20,5:4,4:1} #0
  release store t1.free
}
