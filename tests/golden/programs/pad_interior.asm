// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program pad_interior
machine tiny
dtype f32
accum f32
dram 384

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor x f32[3,4] input @0
tensor pad f32[6,11] value @64

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node pad op=pad phase=forward origin=""


kernel pad {
  buffer f gbuf f32[66] depth=2 @0
  buffer t gbuf f32[12] depth=2 @576
  token f.free 2
  token f.full 0
  token t.free 2
  token t.full 0
  wait vector f.free
  VMAP f{6:11,11:1} <- | 0 #0
  signal vector f.full
  wait store f.full
  ST pad(0,0) <- f{6:11,11:1} #0
  release store f.free
  wait load t.free
  LD t{3:4,4:1} <- x(0,0) #0
  signal load t.full
  wait store t.full
  ST pad(0,1)*(2,3) <- t{3:4,4:1} #0
  release store t.free
}
