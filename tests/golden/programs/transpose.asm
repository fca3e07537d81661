// ccnn program text, version 1.  Read top to bottom it is the sequential meaning.
program transpose
machine tiny
dtype f32
accum f32
dram 6784

// tensors in DRAM: name, dtype and shape, role, address in bytes
tensor x f32[6,10,14] input @0
tensor transpose f32[14,6,10] value @3392

// graph nodes, numbered from 0 in the order written: #3 at the end of an instruction is node 3
node transpose op=transpose phase=forward origin=""


kernel transpose {
  buffer t gbuf f32[60] depth=2 @0
  token t.free 2
  token t.full 0
  loop i0 14 {
    wait load t.free
    LD t[i0]{6:10,10:1,1:60} <- x(0,0,i0) #0
    signal load t.full
    wait store t.full
    ST transpose(i0,0,0) <- t[i0]{1:60,6:10,10:1} #0
    release store t.free
  }
}
