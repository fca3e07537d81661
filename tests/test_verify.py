"""The static verifier: a safe program passes, and each kind of damage is named by its rule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ccnn.targets.machine import load_machine
from ccnn.targets.text import parse_program, print_program
from ccnn.targets.verify import RULES, verify_program

TINY = load_machine("tiny")

SAFE = """
program gemm
machine tiny
dtype f32
accum f32
dram 8192
tensor a f32[30,12] input @0
tensor b f32[12,4] parameter @2048
tensor c f32[30,4] value @4096
tensor d f32[30,4] value @5120
node n op=matmul phase=forward origin=n
kernel multiply {
  buffer a gbuf f32[96] depth=2 @0
  buffer b gbuf f32[48] depth=1 @768
  buffer c gbuf f32[32] depth=2 @1024
  buffer v lbuf_v f32[16] depth=2 @0
  buffer h lbuf_h f32[32] depth=2 @0
  buffer pe pe f32[16] depth=2 @0
  buffer acc acc f32[32] depth=2 @0
  token a.free 2
  token a.full 0
  token b.full 0
  token c.free 2
  token c.full 0
  token v.free 2
  token v.full 0
  token h.free 2
  token h.full 0
  token pe.free 2
  token pe.full 0
  token acc.free 2
  token acc.full 0
  LD b{12:4,4:1} <- b(0,0) #0
  signal load b.full
  wait feed_v b.full
  loop i 4 {
    wait load a.free
    LD a[i]{min(8,30-8*i):12,12:1} <- a(8*i,0) #0
    signal load a.full
    wait feed_h a.full
    wait drain c.free
    wait array acc.free
    loop k 3 {
      wait feed_v v.free
      LdLBUF_V v[i+k] <- b{12:4|4:1}<4*k:4,0:4> #0
      signal feed_v v.full
      wait feed_h h.free
      LdLBUF_H h[i+k] <- a[i]{8:12|12:1}<0:min(8,30-8*i),4*k:4> #0
      signal feed_h h.full
      wait shift v.full
      wait shift pe.free
      ShiftV pe[i+k] <- v[i+k] k=4 n=4 #0
      release shift v.free
      signal shift pe.full
      wait array pe.full
      wait array h.full
      ExecGEMM acc[i] <- h[i+k] * pe[i+k] m=min(8,30-8*i) k=4 n=4 add=k #0
      release array h.free
      release array pe.free
    }
    signal array acc.full
    wait drain acc.full
    StLBUF c[i]{8:4|4:1}<0:min(8,30-8*i),0:4> <- acc[i] #0
    release drain acc.free
    signal drain c.full
    release feed_h a.free
    wait store c.full
    ST c(8*i,0) <- c[i]{min(8,30-8*i):4,4:1} #0
    release store c.free
  }
}
kernel activate {
  buffer x gbuf f32[8] depth=2 @0
  buffer y gbuf f32[8] depth=2 @64
  token x.free 2
  token x.full 0
  token y.free 2
  token y.full 0
  loop i 15 {
    wait load x.free
    LD x[i]{2:4,4:1} <- c(2*i,0) #0
    signal load x.full
    wait vector x.full
    wait vector y.free
    VMAP y[i]{2:4,4:1} <- x[i]{2:4,4:1} | s0 0 max #0
    release vector x.free
    signal vector y.full
    wait store y.full
    ST d(2*i,0) <- y[i]{2:4,4:1} #0
    release store y.free
  }
}
"""


def findings(text: str) -> list:
    return verify_program(parse_program(text), TINY)


def test_safe_program_has_no_findings():
    assert [str(f) for f in findings(SAFE)] == []


DAMAGE = [
    ("structure", "wait load x.free", "wait load z.free"),
    ("structure", "LD x[i]{2:4,4:1} <- c(2*i,0)", "LD x[i]{2:4,4:1} <- q(2*i,0)"),
    ("structure", "LD x[i]{2:4,4:1} <- c(2*i,0)", "LD x[i]{8:1} <- c(2*i,0)"),
    ("structure", "VMAP y[i]", "VMAP z[i]"),
    ("structure", "VMAP y[i]", "VMAP y[j]"),
    ("structure", "| s0 0 max", "| s1 0 max"),
    ("structure", "| s0 0 max", "| s0 0 maximum"),
    ("structure", "| s0 0 max", "| s0 0"),
    ("structure", "loop i 15 {", "loop i 0 {"),
    ("structure", "loop k 3 {", "loop i 3 {"),
    ("structure", "buffer pe pe f32", "buffer pe acc f32"),
    ("structure", "s0 0 max #0", "s0 0 max #7"),
    ("header", "buffer x gbuf f32", "buffer x gbuf f99"),
    ("header", "token x.full 0", "token x.free 0"),
    ("header", "token c.free 2", "token c.free -2"),
    ("hazards", "f32[48] depth=1 @768", "f32[48] depth=1 @760"),
    ("capacity", "f32[32] depth=2 @1024", "f32[32] depth=2 @8000"),
    ("capacity", "v lbuf_v f32[16] depth=2", "v lbuf_v f32[16] depth=3"),
    ("capacity", "h lbuf_h f32[32]", "h lbuf_h f32[33]"),
    ("capacity", "pe pe f32[16] depth=2", "pe pe f32[16] depth=4"),
    ("layout", "tensor d f32[30,4] value @5120", "tensor d f32[30,4] value @8000"),
    ("layout", "dram 8192", "dram 999999999999"),
    ("bounds", "LD b{12:4,4:1} <-", "LD b{12:4,4:1}@1 <-"),
    ("bounds", "LD a[i]{min(8,30-8*i):12", "LD a[i]{min(9,30-8*i):12"),
    ("bounds", "LD a[i]{min(8,30-8*i):12", "LD a[i]{min(8,24-8*i):12"),
    ("bounds", "b{12:4|4:1}<4*k:4,0:4>", "b{12:4|4:1}<5*k:4,0:4>"),
    ("bounds", "m=min(8,30-8*i) k=4", "m=min(8,30-8*i) k=5"),
    ("bounds", "StLBUF c[i]{8:4|4:1}", "StLBUF c[i]{8:5|4:1}"),
    ("contents", "ST c(8*i,0)", "ST c(8*i+8,0)"),
    ("contents", "ST c(8*i,0)", "ST d(8*i,0)"),
    ("contents", "tensor d f32[30,4] value @5120", "tensor d f32[30,4] value @4100"),
    ("contents", "tensor d f32[30,4] value @5120", "tensor d f32[30,4] value @2052"),
    ("tokens", "token x.free 2", "token x.free 0"),
    ("tokens", "    release vector x.free\n", ""),
    ("tokens", "    wait load x.free\n", "    wait load x.free\n    wait load x.free\n"),
    ("tokens", "wait load x.free", "wait load y.free"),
    ("hazards", "token x.free 2", "token x.free 3"),
    ("hazards", "buffer y gbuf f32[8] depth=2", "buffer y gbuf f32[8] depth=1"),
    ("hazards", "    wait vector x.full\n", ""),
    ("hazards", "    wait vector y.free\n", ""),
    ("hazards", "signal load x.full", "release load x.full"),
    ("hazards", "  wait feed_v b.full\n", ""),
    ("hazards", "token acc.free 2", "token acc.free 3"),
    ("hazards", "token pe.free 2", "token pe.free 5"),
    ("hazards", "      wait array h.full\n", ""),
    ("hazards", "signal shift pe.full", "release shift pe.full"),
    ("hazards", "ExecGEMM acc[i] <-", "ExecGEMM acc[i+1] <-"),
    ("defined", "VMAP y[i]{2:4,4:1} <- x[i]", "VMAP y[i]{2:4,4:1} <- x[i+1]"),
    ("defined", "m=min(8,30-8*i) k=4 n=4 add=k", "m=min(8,30-8*i) k=4 n=4 add=k+1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "old", "new"), DAMAGE, ids=[f"{d[0]}-{n}" for n, d in enumerate(DAMAGE)]
)
def test_damage_is_caught(rule: str, old: str, new: str):
    assert SAFE.count(old) >= 1
    head, tail = SAFE.rsplit(old, 1)
    assert rule in {f.rule for f in findings(head + new + tail)}


def test_each_rule_is_stated():
    assert all(rule.__doc__ and len(rule.__doc__) > 40 for rule in RULES)


def test_finding_shows_the_line():
    (first, *_) = findings(SAFE.replace("    wait vector x.full\n", ""))
    assert str(first).startswith("hazards in kernel 'activate': vector reads 'x'[0]")
    assert "VMAP y[i]{2:4,4:1} <- x[i]{2:4,4:1} | s0 0 max #0" in str(first)


IN_PLACE = """
program update
machine tiny
dtype f32
accum f32
dram 8192
tensor w f32[32] parameter @0
tensor w.new f32[32] value @0
node n op=map phase=update origin=n
kernel update {
  buffer x gbuf f32[8] depth=2 @0
  buffer y gbuf f32[8] depth=2 @64
  token x.free 2
  token x.full 0
  token y.free 2
  token y.full 0
  loop i 4 {
    wait load x.free
    LD x[i]{8:1} <- w(8*i) #0
    signal load x.full
    wait vector x.full
    wait vector y.free
    VMAP y[i]{8:1} <- x[i]{8:1} | s0 2 mul #0
    release vector x.free
    signal vector y.full
    wait store y.full
    ST w.new(8*i) <- y[i]{8:1} #0
    release store y.free
  }
}
"""


def test_update_in_place_is_safe_tile_by_tile():
    assert [str(f) for f in findings(IN_PLACE)] == []


def test_update_in_place_of_overlapping_tiles_is_a_hazard():
    bad = IN_PLACE.replace("LD x[i]{8:1} <- w(8*i)", "LD x[i]{8:1} <- w(8*i-1)")
    assert {f.rule for f in findings(bad)} == {"hazards"}


def test_update_in_place_of_the_rest_need_not_wait_for_the_tile_before():
    """Of each eight elements six and then two: the second load may come before the first store."""
    head, body = IN_PLACE.split("  loop i 4 {\n")
    body = body.removesuffix("  }\n}\n")
    first = body.replace("{8:1}", "{6:1}").replace("[i]", "[2*i]")
    second = body.replace("{8:1}", "{2:1}").replace("[i]", "[2*i+1]").replace("8*i)", "8*i+6)")
    text = f"{head}  loop i 4 {{\n{first}{second}  }}\n}}\n"
    assert [str(f) for f in findings(text)] == []
    bad = text.replace("<- w(8*i+6)", "<- w(8*i+5)")
    assert {f.rule for f in findings(bad)} == {"hazards"}


def test_update_in_place_before_the_load_is_a_hazard():
    """The store of the iteration is ordered after the load only through the vector unit."""
    bad = IN_PLACE.replace("    wait vector x.full\n", "")
    assert "hazards" in {f.rule for f in findings(bad)}


def test_deep_and_long_loops_are_walked_only_as_far_as_states_differ():
    """2^40 iterations, as a real network has them: walking them all would never end."""
    text = (
        IN_PLACE.replace("f32[32]", "f32[8]")
        .replace("w(8*i)", "w(0)")
        .replace("new(8*i)", "new(0)")
    )
    text = text.replace("loop i 4 {", "loop p 1048576 {\n loop q 1024 {\n loop i 1024 {")
    text = text.replace("    release store y.free\n  }", "    release store y.free\n  }\n }\n }")
    # every iteration rewrites the same tile, so the next load needs a token from the store
    assert {f.rule for f in findings(text)} == {"hazards"}


def test_ordered_spill_is_safe():
    """Store a tile and load it again in the same kernel, with a token from store to load."""
    text = IN_PLACE.replace("token y.full 0", "token y.full 0\n  token back 1")
    text = text.replace("LD x[i]{8:1} <- w(8*i)", "wait load back\n    LD x[i]{8:1} <- w(0)")
    text = text.replace("new(8*i)", "new(0)").replace("f32[32]", "f32[8]")
    text = text.replace("release store y.free", "release store y.free\n    signal store back")
    assert [str(f) for f in findings(text)] == []
    assert "hazards" in {f.rule for f in findings(text.replace("token back 1", "token back 2"))}


def test_token_that_piles_up_is_named():
    text = IN_PLACE.replace("token y.full 0", "token y.full 0\n  token spare 0")
    text = text.replace("release store y.free", "release store y.free\n    signal store spare")
    text = text.replace("loop i 4 {", "loop i 4000 {").replace("f32[32]", "f32[32000]")
    text = text.replace("dram 8192", "dram 131072")
    found = findings(text)
    assert [f.rule for f in found] == ["tokens"]
    assert "pile up" in found[0].message


def test_constants_must_outlast_the_step():
    program = parse_program(IN_PLACE)
    grown = replace(program.tensors[1], shape=(30,))
    found = verify_program(replace(program, tensors=(program.tensors[0], grown)), TINY)
    assert "contents" in {f.rule for f in found}


def test_a_part_of_a_matrix_may_lie_outside_when_the_window_does_not():
    """A group's slice of a bias: the window is one column, the matrix two, the offset moves."""
    drain = "<0:min(8,30-8*i),0:4> <- acc[i]"
    good = SAFE.replace(drain, drain + " bias=b{1:0|8:1}@40<0:1,0:4>")
    assert "bounds" not in {f.rule for f in findings(good)}
    short = good.replace("b{1:0|8:1}@40<0:1,0:4>", "b{1:0|12:1}@40<0:1,0:4>")
    assert "bounds" not in {f.rule for f in findings(short)}
    bad = good.replace("b{1:0|8:1}@40<0:1,0:4>", "b{1:0|12:1}@45<0:1,0:4>")
    assert "bounds" in {f.rule for f in findings(bad)}


def test_what_is_stored_last_must_be_whole():
    found = findings(SAFE.replace("ST d(2*i,0)", "ST d(2*i+1,0)"))
    assert [f.rule for f in found] == ["contents"]
    assert "'d' is left with 116 of its 120 elements written" in found[0].message


def test_findings_read_well(golden):
    """The text of every complaint above, for the eye."""
    lines = []
    for rule, old, new in DAMAGE:
        head, tail = SAFE.rsplit(old, 1)
        found = next(f for f in findings(head + new + tail) if f.rule == rule)
        lines.append(f"{old.strip()}  ->  {new.strip()}\n  {found}\n")
    golden("errors/verify.txt", "\n".join(lines))


def test_program_reads_well(golden):
    golden("targets/gemm.txt", print_program(parse_program(SAFE)))
