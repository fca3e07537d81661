"""Composition of `map` nodes into the `map` and `reduce` nodes that read them."""

from __future__ import annotations

from dataclasses import replace

from ccnn.passes.expr import LETTERS, operand, parse_expr, substitute
from ccnn.passes.graph import GraphError, Node


def inline(reader: Node, producer: Node) -> Node:
    """`reader` with the single result of `producer`, a map, computed inside its expressions.

    Raises GraphError when the two together read more tensors than there are operand letters.
    """
    (result,), (text,) = producer.outputs, producer.attr("exprs")
    inputs = list(dict.fromkeys([*(i for i in reader.inputs if i != result), *producer.inputs]))
    if len(inputs) > len(LETTERS):
        raise GraphError(f"'{producer.name}' and '{reader.name}' read more than 26 tensors")
    place = {name: operand(k) for k, name in enumerate(inputs)}
    inner = substitute(parse_expr(text), {k: place[name] for k, name in enumerate(producer.inputs)})
    outer = {k: inner if n == result else place[n] for k, n in enumerate(reader.inputs)}
    exprs = tuple(str(substitute(parse_expr(e), outer)) for e in reader.attr("exprs"))
    return replace(reader, inputs=tuple(inputs)).with_attrs(exprs=exprs)
