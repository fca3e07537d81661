"""The expression language: printing, parsing, folding, substitution."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccnn.passes.expr import (
    FUNCTIONS,
    Expr,
    evaluate,
    number,
    operand,
    operands_of,
    operations,
    parse_expr,
    substitute,
)
from ccnn.passes.fold import fold
from ccnn.passes.graph import GraphError

NUMBERS = st.one_of(
    st.integers(-5, 5).map(number),
    st.floats(allow_nan=False, width=64).map(number),
)


def _applied(children: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    def call(name: str) -> st.SearchStrategy[Expr]:
        arity = FUNCTIONS[name][0]
        return st.tuples(*[children] * arity).map(lambda args: Expr(name, args))

    return st.sampled_from(sorted(FUNCTIONS)).flatmap(call)


EXPRS = st.recursive(st.one_of(st.integers(0, 25).map(operand), NUMBERS), _applied, max_leaves=12)


@given(EXPRS)
def test_printed_expressions_parse_to_the_same_value(e):
    values = [np.linspace(-2, 2, 5) + 0.1 * k for k in range(26)]
    again = parse_expr(str(e))
    wanted, got = (evaluate(t, values, np.dtype(np.float64)) for t in (e, again))
    np.testing.assert_array_equal(got, wanted)
    assert parse_expr(str(again)) == again


@given(EXPRS)
def test_folding_keeps_the_value(e):
    values = [np.linspace(-2, 2, 5) + 0.1 * k for k in range(26)]
    wanted = evaluate(e, values, np.dtype(np.float64))
    got = evaluate(fold(e), values, np.dtype(np.float64))
    np.testing.assert_array_equal(np.broadcast_to(got, wanted.shape), wanted)


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("a * 1", "a"),
        ("0 + a", "a"),
        ("a / (3 - 2)", "a"),
        ("pow(a, 2 - 1)", "a"),
        ("a * 0", "a * 0"),
        ("where(2 > 1, a, b)", "a"),
        ("max(2, 3) * a", "3 * a"),
    ],
)
def test_folding(text, folded):
    assert str(fold(parse_expr(text))) == folded


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a +",
        "foo(a)",
        "max(a)",
        "a ** b",
        "import os",
        "a.b",
        "a[0]",
        "'x'",
        "a < b < c",
        "ab",
        "max(a, *b)",
        "(" * 300,
        "True and a",
    ],
)
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(GraphError):
        parse_expr(text)


def test_comparisons_give_one_or_zero():
    x = np.array([-1.0, 0.0, 1.0])
    wanted = {">": [0, 0, 1], ">=": [0, 1, 1], "<": [1, 0, 0], "<=": [1, 1, 0], "==": [0, 1, 0]}
    for sign, expected in wanted.items():
        got = evaluate(parse_expr(f"a {sign} 0"), [x], np.dtype(np.float32))
        assert got.dtype == np.float32
        assert got.tolist() == expected


def test_precision_is_the_one_asked_for():
    third = evaluate(parse_expr("1 / 3 + a"), [np.zeros(1, np.float64)], np.dtype(np.float32))
    assert third[0] == np.float32(1) / np.float32(3)


def test_sigmoid_and_softplus_do_not_overflow():
    x = np.array([-1e4, 1e4])
    assert evaluate(parse_expr("sigmoid(a)"), [x], np.dtype(np.float64)).tolist() == [0, 1]
    assert evaluate(parse_expr("softplus(a)"), [x], np.dtype(np.float64)).tolist() == [0, 1e4]
    assert evaluate(parse_expr("erf(a)"), [x], np.dtype(np.float64)).tolist() == [-1, 1]


def test_substitution_and_queries():
    e = substitute(parse_expr("a * b + a"), {0: parse_expr("max(c, 0)")})
    assert str(e) == "max(c, 0) * b + max(c, 0)"
    assert operands_of(e) == {1, 2}
    assert operations(e) == ["max", "mul", "max", "add"]
    assert str(parse_expr("-inf")) == "-inf"
    assert parse_expr("-inf").value == -math.inf
