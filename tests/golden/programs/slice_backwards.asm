// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program slice_backwards
machine tiny
dtype f32
accum f32
dram 320

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor x f32[6,9] input @0
tensor slice f32[3,3] value @256

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node slice op=slice phase=forward origin=""


kernel slice {
  buffer t gbuf f32[9] depth=2 @0
  token t.free 2
  token t.full 0
  wait load t.free
  LD t{3:3,3:1} <- x(5,1)*(-2,3) #0
  signal load t.full
  wait store t.full
  ST slice(0,0) <- t{3:3,3:1} #0
  release store t.free
}
