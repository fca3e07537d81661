"""Programs as text and as bytes: both give an equal program back, and both refuse damage."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnn.targets import program as ir
from ccnn.targets.binary import decode, encode
from ccnn.targets.errors import ProgramError
from ccnn.targets.text import parse_program, print_program

NAMES = st.one_of(
    st.sampled_from(["x", "conv1/w", "onnx::Conv_33", "momentum/fc.weight", "loop", "0", ""]),
    st.text(max_size=6),
)
VARS = st.sampled_from(["i0", "i1", "k", "_n2"])
WHOLE = st.integers(-(2**40), 2**40)
SIZES = st.integers(1, 5000)


@st.composite
def affines(draw):
    terms = draw(st.dictionaries(VARS, WHOLE.filter(bool), max_size=3))
    return ir.Affine(draw(WHOLE | st.just(0)), tuple(sorted(terms.items())))


EXTENTS = st.builds(ir.Extent, SIZES, st.none() | affines())
DIMS = st.lists(st.tuples(EXTENTS, WHOLE), max_size=3).map(tuple)
SLOTS = st.builds(ir.Slot, NAMES, affines())
VIEWS = st.builds(ir.View, NAMES, DIMS, affines(), affines())
MATRICES = st.builds(
    ir.Matrix, NAMES, DIMS, DIMS, affines(), EXTENTS, affines(), EXTENTS, affines(), affines()
)
NODES = st.integers(0, 9)
FLOATS = st.floats(allow_nan=False)
STARTS = st.lists(affines(), max_size=3).map(tuple)
STEPS = st.lists(st.integers(-3, 3), max_size=3).map(tuple)
BOXES = st.lists(st.tuples(affines(), st.integers(-3, 3)), max_size=3).map(
    lambda pairs: (tuple(a for a, _ in pairs), tuple(s for _, s in pairs))
)
SOURCES = st.lists(VIEWS, max_size=3).map(tuple)
CODE = st.lists(st.sampled_from(["s0", "k1", "add", "where"]) | FLOATS, max_size=4).map(tuple)
KINDS = st.sampled_from(["sum", "max", "argmax"])
AXES = st.lists(st.integers(0, 3), max_size=3).map(tuple)

INSTRUCTIONS = st.one_of(
    st.builds(lambda n, d, t, b, f: ir.Load(n, d, t, *b, f), NODES, VIEWS, NAMES, BOXES, FLOATS),
    st.builds(lambda n, t, b, v: ir.Store(n, t, *b, v), NODES, NAMES, BOXES, VIEWS),
    st.builds(ir.LoadV, NODES, SLOTS, MATRICES),
    st.builds(ir.LoadH, NODES, SLOTS, MATRICES),
    st.builds(ir.Shift, NODES, SLOTS, SLOTS, EXTENTS, EXTENTS),
    st.builds(ir.Exec, NODES, SLOTS, SLOTS, SLOTS, EXTENTS, EXTENTS, EXTENTS, affines()),
    st.builds(ir.Drain, NODES, MATRICES, SLOTS, affines(), st.none() | MATRICES),
    st.builds(ir.Map, NODES, VIEWS, SOURCES, CODE, STARTS),
    st.builds(ir.Reduce, NODES, KINDS, AXES, VIEWS, SOURCES, CODE, STARTS, affines()),
    st.builds(ir.Random, NODES, VIEWS, WHOLE, affines()),
)
SYNCS = st.builds(
    ir.Sync, st.sampled_from(ir.ENGINES), st.sampled_from(["wait", "signal", "release"]), NAMES
)
ITEMS = st.recursive(
    INSTRUCTIONS | SYNCS,
    lambda inner: st.builds(ir.Loop, VARS, SIZES, st.lists(inner, max_size=3).map(tuple)),
    max_leaves=5,
)
SPACES = st.sampled_from(ir.SPACES)
DTYPES = st.sampled_from(sorted(ir.DTYPE_BYTES))
BUFFERS = st.builds(ir.Buffer, NAMES, SPACES, DTYPES, SIZES, SIZES, st.integers(0, 10**9))
KERNELS = st.builds(
    ir.Kernel,
    NAMES,
    st.lists(BUFFERS, max_size=2).map(tuple),
    st.lists(st.builds(ir.Token, NAMES, st.integers(0, 9)), max_size=2).map(tuple),
    st.lists(ITEMS, max_size=4).map(tuple),
)
SHAPES = st.lists(st.integers(0, 99), max_size=4).map(tuple)
TENSORS = st.builds(ir.Placed, NAMES, SHAPES, DTYPES, NAMES, st.integers(0, 10**12))
PROGRAMS = st.builds(
    ir.Program,
    NAMES,
    NAMES,
    DTYPES,
    DTYPES,
    st.integers(0, 10**12),
    st.lists(TENSORS, max_size=3).map(tuple),
    st.lists(st.builds(ir.NodeRef, NAMES, NAMES, NAMES, NAMES), max_size=3).map(tuple),
    st.lists(KERNELS, max_size=2).map(tuple),
)


def complaint(read, source) -> str:
    """What the reader says, or 'damaged: no' when it found a program after all."""
    try:
        made = read(source)
    except ProgramError as error:
        return str(error)
    return "damaged: no" if isinstance(made, ir.Program) else "not even a program"


@settings(max_examples=30, deadline=None)
@given(PROGRAMS)
def test_text_gives_the_program_back(program):
    assert parse_program(print_program(program)) == program


@settings(max_examples=30, deadline=None)
@given(PROGRAMS)
def test_bytes_give_the_program_back(program):
    assert decode(encode(program)) == program


@settings(max_examples=15, deadline=None)
@given(PROGRAMS, st.data())
def test_damaged_bytes_are_refused(program, data):
    good = encode(program)
    place = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ProgramError):
        decode(bytes(bad))
    with pytest.raises(ProgramError):
        decode(good[:place])


@settings(max_examples=30, deadline=None)
@given(PROGRAMS, st.data())
def test_forged_bytes_never_crash(program, data):
    """Damage behind a correct checksum gives another program or a ProgramError, nothing else."""
    good = encode(program)
    payload = bytearray(good[13:])
    place = data.draw(st.integers(0, len(payload) - 1))
    payload[place : place + 2] = data.draw(st.binary(max_size=3))
    forged = good[:9] + struct.pack("<I", zlib.crc32(payload)) + bytes(payload)
    assert "damaged" in complaint(decode, forged)


SMALL = """\
program p
machine tiny
dtype f32
accum f32
dram 64
tensor "my input" f32[4,4] input @0
node n op=relu phase=forward origin=Relu_0
kernel k {
  buffer x gbuf f32[16] depth=2 @0
  token x.free 2
  loop i0 4 {
    wait load x.free
    LD x[i0]{min(4,16-4*i0):4,4:1}@2*i0+1 <- "my input"(i0-1,0)*(1,2) fill=-1.5 #0
    // a comment
    VMAP x{4:1} <- x[1]{4:1} | s0 k0 mul 0.5 add | 2*i0 #0
  }
}
"""


def test_text_means_what_it_says():
    program = parse_program(SMALL)
    (loop,) = program.kernels[0].body
    assert isinstance(loop, ir.Loop)
    wait, load, vmap = loop.body
    i = ir.var("i0")
    assert wait == ir.Sync("load", "wait", "x.free")
    dims = ((ir.Extent(4, i * -4 + 16), 4), (ir.Extent(4), 1))
    view = ir.View("x", dims, i * 2 + 1, i)
    assert load == ir.Load(0, view, "my input", (i + -1, ir.ZERO), (1, 2), -1.5)
    assert isinstance(vmap, ir.Map)
    assert vmap.code == ("s0", "k0", "mul", 0.5, "add")
    assert vmap.scalars == (i * 2,)
    assert program.kernels[0].buffers == (ir.Buffer("x", "gbuf", "f32", 16, 2, 0),)


def test_hand_written_text_prints_as_it_was_written():
    printed = print_program(parse_program(SMALL)).split("\n")
    assert [line for line in SMALL.split("\n") if line not in printed] == ["    // a comment"]


WRONG = [
    ("wait load x.free", "wait laod x.free", 12, "no engine"),
    ("wait load x.free", "wiat load x.free", 12, "begins no line"),
    ("2*i0+1 <-", "2*i0+ <-", 13, "not an address"),
    ("{4:1} <- x[1]", "{4} <- x[1]", 15, "not a list of dims"),
    ("fill=-1.5", "fill=much", 13, "not a number"),
    (" #0\n    //", "\n    //", 13, "ends in its node"),
    ("loop i0 4 {", "loop i0 four {", 11, "not a whole number"),
    ("  }\n}\n", "}\n", 17, "line 8 opens"),
    ("  }\n}\n", "  }\n}\n}\n", 18, "closes nothing"),
    ("dram 64\n", "", 17, "lacks a line 'dram"),
    ("dram 64\n", "dram 64\ndram 65\n", 6, "twice"),
    ('"my input" f32', '"my input f32', 6, "should read"),
    ("buffer x gbuf f32[16]", "buffer x gbuf f32[16,2]", 9, "one size"),
    ("| s0 k0 mul 0.5 add | 2*i0", "s0", 15, "view <- views | code"),
    ("kernel k {", "kernel k", 8, "should read 'kernel NAME {'"),
    ("dram 64", "dram " + "9" * 5000, 0, "not a whole number"),
]


@pytest.mark.parametrize(("old", "new", "line", "words"), WRONG)
def test_wrong_text_is_shown_with_its_line(old: str, new: str, line: int, words: str):
    assert SMALL.count(old) == 1
    with pytest.raises(ProgramError) as caught:
        parse_program(SMALL.replace(old, new))
    message = str(caught.value)
    assert words in message
    if line:
        assert message.startswith(f"line {line}: ")
        assert f">{line:>7} | " in message or f"> {line:>5} | " in message


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_mangled_text_never_crashes(data):
    start = data.draw(st.integers(0, len(SMALL)))
    stop = data.draw(st.integers(start, min(len(SMALL), start + 20)))
    text = SMALL[:start] + data.draw(st.text(max_size=5)) + SMALL[stop:]
    assert complaint(parse_program, text).startswith(("line ", "damaged"))


def test_bytes_of_something_else():
    with pytest.raises(ProgramError, match="not a ccnn program"):
        decode(b"PK\x03\x04 something")


def test_bytes_of_another_version():
    data = bytearray(encode(parse_program(SMALL)))
    data[8] = 99
    with pytest.raises(ProgramError, match="version 99"):
        decode(bytes(data))


def test_loops_nested_without_end_are_refused():
    text = SMALL.replace("  loop i0 4 {", "  loop i0 4 {\n" * 80)
    with pytest.raises(ProgramError, match="deeper than 64"):
        parse_program(text)


def test_complaints_read_well(golden):
    """The text of the complaints above, for the eye."""
    lines = []
    for old, new, *_ in WRONG[:-1]:
        with pytest.raises(ProgramError) as caught:
            parse_program(SMALL.replace(old, new))
        lines.append(f"{caught.value}\n")
    golden("errors/programs.txt", "\n".join(lines))
