"""Passes, text in and text out: tests/golden/passes/<pass>/<case>.ccnn gives <case>.expect.

The first line of a case names the pass, with options in braces where they are not the default.
Beside the text, the values must stay the same, but for a pass that is meant to change them.
"""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnn.passes.autodiff import Optimizer, differentiate
from ccnn.passes.check import RULES, verify
from ccnn.passes.graph import Builder, Graph, GraphError, Group, Node, Tensor
from ccnn.passes.interpret import interpret
from ccnn.passes.ops import op_named
from ccnn.passes.pipeline import DEFAULT, PASSES, Pass, run_pipeline
from ccnn.passes.text import parse_graph, print_graph

FOLDER = Path(__file__).parent / "golden" / "passes"
CASES = sorted(FOLDER.glob("*/*.ccnn"))


def values_for(graph: Graph) -> dict[str, np.ndarray]:
    """Positive random values for whatever has none."""
    rng = np.random.default_rng(0)
    open_tensors = [t for t in graph.of_role("input", "parameter", "state", "constant")]
    return {
        t.name: rng.uniform(0.5, 1.5, t.shape) for t in open_tensors if t.name not in graph.data
    }


CHANGES_VALUES = {"norm-policy", "share-gradients"}


def pass_of(text: str) -> Pass:
    """The pass that a case's first line asks for: // name{option=value, …}."""
    name, _, options = text.splitlines()[0].removeprefix("// ").rstrip("}").partition("{")
    keywords = ast.parse(f"f({options})", mode="eval").body.keywords
    return PASSES[name](**{k.arg: ast.literal_eval(k.value) for k in keywords})


@pytest.mark.parametrize("path", CASES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_pass(path, golden):
    text = path.read_text(encoding="utf-8")
    before = parse_graph(text)
    verify(before)
    each = pass_of(text)
    after = each(before)
    verify(after)
    golden(f"passes/{path.parent.name}/{path.stem}.expect", print_graph(after))
    if each.name in CHANGES_VALUES:
        return
    values = values_for(before)
    expected, got = interpret(before, values), interpret(after, values)
    for name in before.needed:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-12)


def test_every_expectation_has_a_case_and_every_pass_one():
    assert {p.with_suffix("") for p in FOLDER.glob("*/*.expect")} == {
        p.with_suffix("") for p in CASES
    }
    assert {p.parent.name for p in CASES} == {name.replace("-", "_") for name in PASSES}


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_is_documented_where_its_name_says(name):
    module = PASSES[name].__module__
    assert module == f"ccnn.passes.{name.replace('-', '_')}"
    docs = __import__(module, fromlist=["_"]).__doc__
    assert "before:" in docs
    assert "after:" in docs


@pytest.mark.parametrize("each", DEFAULT, ids=lambda p: p.name)
@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_a_pass_run_twice_changes_nothing_more(each, path):
    once = each(parse_graph(path.read_text(encoding="utf-8")))
    assert each(once) == once


GOOD = """graph g
input %x: float[2]
parameter %w: float[2]
%y: float[2] = mul(%x, %w)  # mul forward
output %y
gradient %w = %y
update %w = %y
"""


def broken(rule: str) -> Graph:
    """A graph that breaks one rule."""
    graph = parse_graph(GOOD)
    node, tensors = graph.nodes[0], dict(graph.tensors)
    wide = Tensor("v", (3,))
    match rule:
        case "names_agree":
            return replace(graph, nodes=(node, replace(node, outputs=())))
        case "tensors_exist":
            return replace(graph, outputs=("z",))
        case "dtypes_exist":
            return replace(graph, tensors={**tensors, "x": Tensor("x", (2,), "double", "input")})
        case "written_once":
            return replace(graph, nodes=(node, replace(node, name="again")))
        case "written_before_read":
            first = Node("first", "relu", ("y",), ("z",))
            return replace(graph, nodes=(first, node), tensors={**tensors, "z": Tensor("z", (2,))})
        case "attributes_frozen":
            return replace(graph, nodes=(replace(node, attrs=(("b", 1), ("a", [2]))),))
        case "results_fit":
            return replace(graph, tensors={**tensors, "y": Tensor("y", (3,))})
        case "gradients_fit":
            b = Builder(base=graph)
            b.gradients["w"] = b.emit("concat", ["y", "y"], axis=0)
            return b.build()
        case "updates_fit":
            return replace(graph, updates={"x": "y"})
        case "data_fits":
            return replace(graph, data={"w": np.zeros(wide.shape)})
        case "groups_are_runs":
            return replace(graph, groups=(Group(("mul",)), Group(("mul",))))
        case "groups_hold_what_they_use":
            return replace(graph, groups=(Group(("mul",), 1, ("x",), ("x",)),))
        case "groups_find_what_was_left":
            return replace(graph, groups=(Group(("mul",), 1, left=("x",), left_samples=1),))
    raise AssertionError(rule)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_each_rule_is_checked_and_says_its_docstring(rule):
    verify(parse_graph(GOOD))
    with pytest.raises(GraphError) as caught:
        verify(broken(rule.__name__))
    assert str(caught.value).startswith(f"graph 'g': {rule.__doc__} (")


def test_the_pipeline_names_the_pass_that_broke_the_graph():
    class Break:
        name = "break"

        def __call__(self, graph: Graph) -> Graph:
            return broken("results_fit")

    seen = []
    with pytest.raises(GraphError, match="pass 'break'"):
        run_pipeline(parse_graph(GOOD), [*DEFAULT, Break()], lambda p, g: seen.append(p.name))
    assert seen == ["simplify", "split-batchnorm", "expand", "fuse-activations", "simplify"]


SHAPE = (2, 3, 4, 4)
STEPS = (
    "relu",
    "sigmoid",
    "leaky_relu",
    "clip",
    "add",
    "mul",
    "sub",
    "conv",
    "norm",
    "concat",
    "slice",
)


def random_net(choices: list[tuple[str, int, int]]) -> tuple[Graph, str]:
    """A net of [2, 3, 4, 4] tensors: each step reads one or two of the tensors made before."""
    b, rng = Builder("random"), np.random.default_rng(0)
    made = [b.input("x", SHAPE)]

    def parameter(*shape: int) -> str:
        data = rng.uniform(0.5, 1, shape)
        return b.declare(b.fresh("p"), shape, "parameter", data=data)

    for op, left, right in choices:
        x, y = made[left % len(made)], made[right % len(made)]
        if op in ("add", "mul", "sub"):
            z = b.emit(op, [x, y])
        elif op == "conv":
            pads, ones = (1, 1, 1, 1), (1, 1)
            w = parameter(3, 3, 3, 3)
            z = b.emit("conv", [x, w], strides=ones, pads=pads, dilations=ones, group=1)
        elif op == "norm":
            state = [b.declare(b.fresh("s"), (3,), "state", data=np.ones(3)) for _ in range(2)]
            z = b.emit("batch_norm", [x, parameter(3), parameter(3), *state], momentum=0.9)
        elif op in ("concat", "slice"):
            both = b.emit("concat", [x, y], axis=1)
            starts, sizes = (0, 1, 0, 0), SHAPE
            z = b.emit("slice", [both], starts=starts, steps=(1, 2, 1, 1), sizes=sizes)
        else:
            z = b.emit(op, [x], **({"min": 0.0, "max": 6.0} if op == "clip" else {}))
        made.append(z)
    y = b.emit("mul", [made[-1], made[-1]])
    loss = b.emit("reduce_mean", [y], axes=(0, 1, 2, 3), keepdims=False)
    return b.build([made[-1]]), loss


@given(
    st.lists(
        st.tuples(st.sampled_from(STEPS), st.integers(0, 9), st.integers(0, 9)),
        min_size=1,
        max_size=9,
    )
)
@settings(max_examples=60, deadline=None)
def test_the_pipeline_keeps_all_results_of_random_nets(choices):
    graph, loss = random_net(choices)
    trained = differentiate(graph, loss, optimizer=Optimizer(momentum=0.9))
    verify(trained)
    lowered = run_pipeline(trained)
    assert all(op_named(n.op).is_primitive(n) for n in lowered.nodes)
    assert trained.needed == lowered.needed
    values = {"x": np.random.default_rng(1).standard_normal(SHAPE)}
    expected, got = interpret(trained, values), interpret(lowered, values, keep=lowered.needed)
    for name in trained.needed:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-7, atol=1e-9)
