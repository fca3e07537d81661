"""A group that hands a part of the batch on through DRAM, in tiles that do not divide the part."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ccnn.compiler.codegen import generate, make_context
from ccnn.compiler.mapper import map_graph
from ccnn.passes.graph import Builder, Group
from ccnn.targets.machine import load_machine
from ccnn.targets.text import print_program
from ccnn.targets.text_parser import parse_program
from ccnn.targets.verify import verify_program

MACHINE = replace(load_machine("wavecore"), gbuf_bytes=550 * 1024)


@pytest.fixture(scope="module")
def text() -> str:
    """Two iterations of 16 samples; what the first node makes is read three samples at a time.

    The tensor has more elements than the verifier keeps one by one.
    """
    b = Builder("parts")
    x = b.input("x", (32, 512, 1, 18))
    y = b.emit("map", [x], name="a", exprs=("a + 1",), dtypes=("float",))
    z = b.emit_all(
        "reduce", [y], name="b", kind="sum", exprs=("a",), axes=(2, 3), dtypes=("accum",)
    )
    graph = replace(b.build(z), groups=(Group(("a", "b"), 16),))
    context = make_context(graph, MACHINE, "bfloat16")
    return print_program(generate(context, map_graph(context)))


def findings(text: str) -> list[str]:
    return [f.rule for f in verify_program(parse_program(text), MACHINE)]


def test_the_last_tile_is_taken_for_as_small_as_it_is(text):
    assert "{min(3,16-3*i1)" in text
    assert findings(text) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("LD x0[i1]{min(3,16-", "LD x0[i1]{min(3,17-"),
        ("<- a(3*i1,0,0,0)", "<- a(3*i1+1,0,0,0)"),
        ("ST a(2*i0,0,0,0)", "ST a(i0,0,0,0)"),
        ("loop i0 8", "loop i0 7"),
    ],
)
def test_what_reads_beyond_the_part_is_found(text, right, wrong):
    assert text.count(right) == 1
    assert "contents" in findings(text.replace(right, wrong))


def padded(before: int) -> str:
    """Two iterations of 16 samples; the pad reads what the map made under another shape."""
    b = Builder("padded")
    x = b.input("x", (32, 512, 1, 18))
    y = b.emit("map", [x], name="a", exprs=("a + 1",), dtypes=("float",))
    v = b.emit("reshape", [y], name="v", shape=(32, 256, 36))
    ends = {"before": (0, before, 0), "after": (0, 3, 0), "interior": (0, 0, 0), "value": 0.0}
    p = b.emit("pad", [v], name="p", **ends)
    z = b.emit_all("reduce", [p], name="b", kind="sum", exprs=("a",), axes=(1, 2),
                   dtypes=("accum",))  # fmt: skip
    graph = replace(b.build(z), groups=(Group(("a", "v", "p", "b"), 16),))
    context = make_context(graph, MACHINE, "bfloat16")
    return print_program(generate(context, map_graph(context)))


@pytest.mark.parametrize("before", [0, 2])
def test_what_a_pad_fills_need_not_have_been_written(before):
    text = padded(before)
    assert findings(text) == []
    first = text.index("<- v(")  # a load one sample further on reads what nobody wrote yet
    wrong = text[:first] + text[first:].replace("<- v(", "<- v(1+", 1)
    assert "contents" in findings(wrong)
