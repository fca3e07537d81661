"""Graph text: what is printed parses back, and what cannot be parsed is explained."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnn.passes.autodiff import Optimizer, differentiate
from ccnn.passes.expand import expand
from ccnn.passes.graph import Builder, Graph, GraphError, Group, Node, Tensor, freeze_attrs
from ccnn.passes.text import parse_graph, print_graph

NAMES = st.one_of(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_./:\-]{0,6}", fullmatch=True),
    st.text(min_size=1, max_size=6),
)
ATTRS = st.recursive(
    st.one_of(
        st.booleans(), st.integers(), st.floats(allow_nan=False),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    ),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)  # fmt: skip
KEYS = st.sampled_from(["axis", "axes", "exprs", "min", "shape"])
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
DTYPES = st.sampled_from(["float", "accum", "index", "bytes"])


@st.composite
def graphs(draw) -> Graph:
    """Graphs that keep the rules of the text, though not those of any op."""
    names = draw(st.lists(NAMES, min_size=3, max_size=9, unique=True))
    split = draw(st.integers(1, len(names) - 1))
    roles = ["input", "parameter", "state", "constant"]
    tensors = {
        n: Tensor(
            n, draw(SHAPES), draw(DTYPES), draw(st.sampled_from(roles)) if k < split else "value"
        )
        for k, n in enumerate(names)
    }
    nodes, known = [], names[:split]
    for k, name in enumerate(names[split:]):
        inputs = draw(st.lists(st.sampled_from(["", *known]), max_size=3))
        attrs = freeze_attrs(draw(st.dictionaries(KEYS, ATTRS, max_size=3)))
        phase = draw(st.sampled_from(["forward", "loss", "backward", "update"]))
        origin = draw(st.one_of(st.just(""), NAMES))
        nodes.append(Node(f"n{k}", "relu", tuple(inputs), (name,), attrs, origin, phase))
        known = [*known, name]
    pick = st.sampled_from(names)
    return Graph(
        draw(NAMES), tuple(nodes), tensors, tuple(draw(st.lists(pick, max_size=2))),
        draw(st.dictionaries(pick, pick, max_size=2)),
        draw(st.dictionaries(pick, pick, max_size=2)),
        groups=tuple(
            Group((node.name,), draw(st.integers(0, 9)), *(
                tuple(draw(st.lists(pick, max_size=2))) for _ in range(2)
            ), rows=draw(st.integers(0, 2)), carried=draw(st.booleans()))
            for node in nodes if draw(st.booleans())
        ),
    )  # fmt: skip


@given(graphs())
@settings(max_examples=200, deadline=None)
def test_printed_graphs_parse_to_themselves(graph):
    text = print_graph(graph)
    again = parse_graph(text)
    assert again == graph
    assert [n.outputs for n in again.nodes] == [n.outputs for n in graph.nodes]


def training_graph() -> Graph:
    """A small training step with every phase."""
    b = Builder("small")
    x, t = b.input("x", (2, 3)), b.input("target", (2,), "index")
    w = b.declare("fc/weight:0", (4, 3), "parameter", data=np.ones((4, 3)))
    b.origin = "/fc/Gemm"
    y = b.emit("matmul", [x, w], name="fc", trans_a=False, trans_b=True)
    loss = b.emit("softmax_cross_entropy", [b.emit("relu", [y]), t], reduction="mean")
    return differentiate(b.build([y]), loss, optimizer=Optimizer("adamw"))


def test_a_training_step_survives_print_and_parse():
    for graph in (training_graph(), expand(training_graph())):
        assert parse_graph(print_graph(graph)) == graph


def test_small_constants_carry_their_values_and_large_ones_do_not():
    b = Builder()
    x = b.input("x", (20,))
    small, large = b.constant(np.float32(0.1), "small"), b.constant(np.arange(20.0), "large")
    index = b.constant(np.array([3, 1], np.int32), "index", "index")
    graph = b.build([b.emit("add", [b.emit("mul", [x, small]), large]), index])
    again = parse_graph(print_graph(graph))
    assert again.data["small"] == np.float32(0.1)
    assert again.data["index"].tolist() == [3, 1]
    assert "large" not in again.data
    assert parse_graph(print_graph(graph), graph.data).data["large"].shape == (20,)


HEAD = "graph g\ninput %x: float[2]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not start with 'graph NAME'"),
        ("input %x: float[2]", "line 1: 'graph ' should stand here"),
        ("graph g\ninput %x float[2]", "line 2: ':' should stand here"),
        ("graph g\ninput %x: double[2]", "dtype 'double' is none of"),
        ("graph g\ninput %x: float[2", "']' is missing"),
        ("graph g\ninput %x: float[two]", r"\[two\] is no shape"),
        ("graph g\ninput %x: float[-2]", "negative size"),
        (HEAD + "input %x: float[2]", "line 3: tensor 'x' is declared twice"),
        (HEAD + "%y: float[2] = relu(%z)  # n forward", "'z' is not defined before this line"),
        (HEAD + "%y: float[2] = relu(%x)", "line 3: '#' should stand here at the end of the line"),
        (HEAD + "%y: float[2] = relu(%x) {a=b()}  # n forward", "is no attribute value"),
        (HEAD + "%y: float[2] = relu(%x) {a=}  # n forward", "are no attributes"),
        (HEAD + "%y: float[2] = relu(%x)  # n sideways", "phase 'sideways' is none of"),
        (HEAD + "output %y", "'y' is not defined"),
        (HEAD + "produce %x", "'produce' begins no statement"),
        (HEAD + "output %x %x", "nothing more should stand here"),
        (HEAD + "group [a] sub_batch few", "'few' is no number of samples"),
        (HEAD + "group [a] sub_batch 2 resident [%z] kept []", "'z' is not defined"),
        (HEAD + "group a", r"'\[' should stand here"),
        ("graph g\nconstant %c: float[2] = [1.0]", "1 values for a tensor of 2 elements"),
        ("graph g\nconstant %c: float[1] = [one]", "are no numbers"),
        ('graph g\ninput %"x: float[2]', "no closing quote"),
    ],
)
def test_errors_name_the_line(text, message):
    with pytest.raises(GraphError, match=message):
        parse_graph(text)
