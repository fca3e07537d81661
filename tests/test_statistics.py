"""Statistics in one sweep where a sum of squares cancels: mean 1000, deviation 1, 16-bit data."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from ccnn.compiler.codegen import generate, make_context
from ccnn.compiler.mapper import map_graph
from ccnn.passes.graph import Builder, Graph, Group
from ccnn.passes.interpret import interpret
from ccnn.passes.split_batchnorm import SplitBatchNorm
from ccnn.passes.text import parse_graph
from ccnn.targets.machine import load_machine
from ccnn.targets.simulator import Execution
from ccnn.targets.verify import verify_program

SHAPE = (16, 4, 16, 16)
COUNT = 16 * 16 * 16
TINY = replace(load_machine("tiny"), gbuf_bytes=16 * 2**10)
STORED = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def safe() -> Graph:
    """A batch norm, split; %u is its variance."""
    b = Builder("safe")
    x = b.input("x", SHAPE)
    scale = [b.declare(n, (4,), "constant", data=np.ones(4)) for n in ("s", "b")]
    state = [b.declare(n, (4,), "state", data=np.ones(4)) for n in ("m", "v")]
    y, *_ = b.emit_all("batch_norm", [x, *scale, *state], name="bn", epsilon=0.0)
    graph = SplitBatchNorm()(b.build([y]))
    (sums,) = (n for n in graph.nodes if n.op == "moments")
    return replace(graph, outputs=(*graph.outputs, sums.outputs[1]))


def naive() -> Graph:
    """The variance as E[x^2] - E[x]^2, its sums in the precision of sums."""
    return parse_graph(
        f"""graph naive
input %x: float[16, 4, 16, 16]
%a: accum[1, 4, 1, 1], %b: accum[1, 4, 1, 1] = reduce(%x) {{axes=(0, 2, 3), dtypes=("accum", "accum"), exprs=("a", "a * a"), kind="sum"}}  # sums forward
%u: accum[1, 4, 1, 1] = map(%a, %b) {{dtypes=("accum",), exprs=("b / {COUNT} - a / {COUNT} * (a / {COUNT})",)}}  # variance forward
output %u
"""  # noqa: E501
    )


def data(dtype: str) -> np.ndarray:
    """What is in memory: rounded to 16 bits."""
    values = np.random.default_rng(5).normal(1000, 1, SHAPE)
    return values.astype(STORED[dtype]).astype(np.float64)


def executed(graph: Graph, dtype: str, x: np.ndarray) -> np.ndarray:
    """The last output of the program, proven safe."""
    context = make_context(graph, TINY, dtype)
    program = generate(context, map_graph(context))
    assert verify_program(program, TINY) == []
    run = Execution(program, TINY, poison=True)
    run.write("x", x)
    for name, value in graph.data.items():
        run.write(name, value)
    run.step()
    return np.asarray(run[graph.outputs[-1]], np.float64).reshape(-1)


def in_sub_batches(graph: Graph) -> Graph:
    """The statistics gathered over sub-batches of three samples, the last one smaller."""
    (sums,) = (n for n in graph.nodes if n.op == "moments")
    return replace(graph, groups=(Group((sums.name,), 3),))


@pytest.mark.parametrize("dtype", STORED)
def test_ours_is_right_where_the_naive_one_is_not(dtype):
    x = data(dtype)
    truth = x.var((0, 2, 3))
    assert truth.min() > 0.5
    found = {
        "program": executed(safe(), dtype, x),
        "sub-batches": executed(in_sub_batches(safe()), dtype, x),
        "interpreter": interpret(safe(), {"x": x})[safe().outputs[-1]].reshape(-1),
    }
    for what, variance in found.items():
        assert np.abs(variance / truth - 1).max() < 1e-4, what
    assert np.abs(executed(naive(), dtype, x) / truth - 1).max() > 0.01


@pytest.mark.parametrize("dtype", STORED)
def test_in_double_precision_they_are_the_same_formula(dtype):
    x = data(dtype)
    expected = interpret(naive(), {"x": x})["u"].reshape(-1)
    np.testing.assert_allclose(expected, x.var((0, 2, 3)), rtol=1e-6)
