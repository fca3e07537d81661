"""Pass `defer-norms`: what a norm's gradient subtracts is left off until the sum is complete.

The gradient of a batch norm is p (dy - s - (x - m) t), p, s, t and m of a channel (see
passes/ops/normalization.py).  Where it only meets other gradients, s and t, which the whole batch
has to pass for, are not needed yet:

before:  %dx = map(%dy, %x, %p, %s, %t, %m, %i) {exprs=("c * (a - d - (b - f) * g * e)",)}
         %sum = map(%dx, %other) {exprs=("a + b",)}
         %dw = conv_dw(%y, %sum) {…}
after:   %shift, %slope = map(%p, %s, %t, %i) {exprs=("-(a * b)", "-(a * c * d)")}
         %some = map(%dy, %p, %other) {exprs=("b * a + c",)}           before %s, %t are known
         %sum = map(%some, %x, %m, %shift, %slope) {exprs=("a + d + (b - c) * e",)}
         %dw = conv_dw(%y, %sum) {…}

The gradient of a part that many layers of a DenseNet read, concatenated with others, is a sum over
all of them.  Each adds to it while its dy is on chip; dy is not stored for the time when its sums
are known, and neither is x read again.  What is left off is a number for each channel and one for
each x: these add up, too, in short tensors, and are applied when the part's gradient is used, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ccnn.passes.compose import inline
from ccnn.passes.expr import Expr, operand, operands_of, parse_expr, substitute
from ccnn.passes.graph import Graph, Node
from ccnn.passes.prune import live_nodes
from ccnn.passes.scope import ScopedBuilder


@dataclass(frozen=True)
class DeferNorms:
    """Adds up gradients of norms before the sums that they wait for."""

    name: ClassVar[str] = "defer-norms"

    def __call__(self, graph: Graph) -> Graph:
        """The graph of primitives; one in which such gradients do not meet others is unchanged."""
        deferred = [n.name for n in graph.nodes if _may_wait(graph, n)]
        if not deferred:
            return graph
        after = _Rewrite(graph, frozenset(deferred)).graph()
        return after.with_nodes(live_nodes(after))


@dataclass(frozen=True)
class Gradient:
    """The operands of a batch norm's gradient; `dy` is an expression of the node's inputs."""

    dy: Expr
    p: str
    s: str
    t: str
    x: str
    mean: str
    istd: str


def _gradient(node: Node) -> Gradient | None:
    """What a map is made of, if it is the gradient of a batch norm, with respect to x."""
    if node.op != "map" or node.phase != "backward" or len(node.outputs) != 1:
        return None
    try:
        p, rest = _args(parse_expr(node.attr("exprs")[0]), "mul")
        rest, scaled = _args(rest, "sub")
        dy, s = _args(rest, "sub")
        scaled, t = _args(scaled, "mul")
        centred, istd = _args(scaled, "mul")
        x, mean = _args(centred, "sub")
    except ValueError:
        return None
    leaves = (p, s, t, x, mean, istd)
    if any(leaf.kind != "in" for leaf in leaves):
        return None
    return Gradient(dy, *(node.inputs[int(leaf.value)] for leaf in leaves))


def _args(e: Expr, kind: str) -> tuple[Expr, Expr]:
    if e.kind != kind:
        raise ValueError
    left, right = e.args
    return left, right


def _may_wait(graph: Graph, node: Node) -> bool:
    """True for a norm's gradient that is only added to others, whole or in slices."""
    found = _gradient(node)
    if found is None or node.outputs[0] in graph.needed:
        return False
    small = all(graph[i].size == graph[node.outputs[0]].shape[1] for i in (found.s, found.t))
    return small and all(_passes_on(graph, n) for n in graph.consumers[node.outputs[0]])


def _passes_on(graph: Graph, node: Node) -> bool:
    """True for slices of channels, and where gradients meet."""
    if node.op == "slice":
        rank = len(node.attr("steps"))
        plain = node.attr("steps") == (1,) * rank
        return plain and not any(s for a, s in enumerate(node.attr("starts")) if a != 1)
    if node.op != "map" or node.attr("exprs") != ("a + b",) or node.phase != "backward":
        return False
    return len({graph[t].shape for t in (*node.inputs, *node.outputs)}) == 1


@dataclass(frozen=True)
class Form:
    """A gradient that is `some` + `shift` + (`x` - `mean`) `slope`."""

    some: str
    shift: str
    slope: str
    x: str
    mean: str


class _Rewrite:
    def __init__(self, graph: Graph, deferred: frozenset[str]) -> None:
        self.before, self.deferred = graph, deferred
        self.b = ScopedBuilder(base=graph)
        self.b.nodes = []
        self.forms: dict[str, Form] = {}
        self.made: dict[str, Node] = {}
        """Tensor to the map that makes it, which may as well be done by its only reader."""
        self.joined = {
            n.inputs: n.outputs[0] for n in graph.nodes if n.op == "concat" and n.attr("axis") == 1
        }

    def graph(self) -> Graph:
        """The whole graph, rewritten."""
        for node in self.before.nodes:
            self.b.phase, self.b.origin, self.b.scope = node.phase, node.origin, node.name
            rewrite = self._rule(node)
            if rewrite is None or not rewrite(node):
                for name in dict.fromkeys(node.inputs):
                    self._complete(name)
                self.b.nodes.append(node)
            for name in self.before.needed.intersection(node.outputs):
                self._complete(name)
        return self.before.with_nodes(self.b.nodes, self.b.tensors.values())

    def _rule(self, node: Node) -> Callable[[Node], bool] | None:
        if node.name in self.deferred:
            return self._norm
        if self.forms.keys().isdisjoint(node.inputs) or not _passes_on(self.before, node):
            return None
        return self._slice if node.op == "slice" else self._add

    def _map(self, inputs: Sequence[str], exprs: Sequence[str], dtype: str) -> tuple[str, ...]:
        kinds = (dtype,) * len(exprs)
        return self.b.emit_all("map", inputs, exprs=tuple(exprs), dtypes=kinds)

    def _norm(self, node: Node) -> bool:
        g = _gradient(node)
        assert g is not None
        shift, slope = self._map([g.p, g.s, g.t, g.istd], ["-(a * b)", "-(a * c * d)"], "accum")
        used = sorted(operands_of(g.dy))
        place = {k: operand(i) for i, k in enumerate(used)}
        dy = substitute(g.dy, place)
        inputs = [*(node.inputs[k] for k in used), self._known_early(g.p)]
        expr = str(Expr("mul", (operand(len(used)), dy)))
        (some,) = self._map(inputs, [expr], "float")
        self.made[some] = self.b.nodes[-1]
        self._move_ahead()
        self.forms[node.outputs[0]] = Form(some, shift, slope, g.x, g.mean)
        return True

    def _known_early(self, name: str) -> str:
        """What does not depend on sums, but was computed with what does."""
        maker = self.before.producer.get(name)
        if maker is None or maker.op != "map":
            return name
        expr = parse_expr(maker.attr("exprs")[maker.outputs.index(name)])
        used = sorted(operands_of(expr))
        alone = substitute(expr, {k: operand(i) for i, k in enumerate(used)})
        (early,) = self._map([maker.inputs[k] for k in used], [str(alone)], "accum")
        self._move_ahead()
        return early

    def _move_ahead(self) -> None:
        """The node written last goes right behind those of its phase that it reads from."""
        nodes, node = self.b.nodes, self.b.nodes[-1]
        place = len(nodes) - 1
        while place and nodes[place - 1].phase == node.phase:
            if not {*node.inputs}.isdisjoint(nodes[place - 1].outputs):
                break
            place -= 1
        self.b.nodes.insert(place, self.b.nodes.pop())

    def _slice(self, node: Node) -> bool:
        form, shape = self.forms[node.inputs[0]], self.before[node.outputs[0]].shape
        if (
            shape[0] != self.before[node.inputs[0]].shape[0]
            or shape[2:] != (self.before[node.inputs[0]].shape[2:])
        ):
            return False
        first = node.attr("starts")[1]
        x = self._part(form.x, first, shape[1])
        if x is None:
            return False

        def cut(name: str) -> str:
            found = self._part(name, first, shape[1])
            if found is not None:
                return found
            at, small = [0] * len(shape), (1, shape[1], *[1] * (len(shape) - 2))
            at[1] = first
            ones = (1,) * len(shape)
            return self.b.emit("slice", [name], starts=tuple(at), sizes=small, steps=ones)

        some = self.b.fresh(f"{node.outputs[0]}/some")
        self.b.declare(some, shape, "value")
        self.b.nodes.append(replace(node, inputs=(form.some,), outputs=(some,)))
        self._move_ahead()
        self.forms[node.outputs[0]] = Form(
            some, cut(form.shift), cut(form.slope), x, cut(form.mean)
        )
        return True

    def _part(self, name: str, first: int, count: int) -> str | None:
        """The tensor that holds these channels of another, if there is one."""
        if (first, count) == (0, self.b.shape(name)[1]):
            return name
        maker = self.before.producer.get(name)
        if maker is None or maker.op != "concat" or maker.attr("axis") != 1:
            return None
        start, parts = 0, []
        for i in maker.inputs:
            wide = self.b.shape(i)[1]
            if start <= first and first + count <= start + wide:
                return self._part(i, first - start, count)
            if first <= start and start + wide <= first + count:
                parts.append((i, start, wide))
            start += wide
        if sum(wide for *_, wide in parts) != count or parts[0][1] != first:
            return None
        return self.joined.get(tuple(i for i, *_ in parts))

    def _add(self, node: Node) -> bool:
        one, other = (self.forms.get(i) for i in node.inputs)
        if one and other and (one.x, one.mean) != (other.x, other.mean):
            self._complete(node.inputs[1])
            other = None
        form = one or other
        assert form is not None
        if one and other:
            both = [one.shift, other.shift, one.slope, other.slope]
            shift, slope = self._map(both, ["a + b", "c + d"], "accum")
            form = replace(form, shift=shift, slope=slope)
        terms = [f.some if f else i for f, i in zip((one, other), node.inputs, strict=True)]
        some = self.b.fresh(f"{node.outputs[0]}/some")
        self.b.declare(some, self.before[node.outputs[0]].shape, "value")
        total = replace(node, inputs=tuple(terms), outputs=(some,))
        for term, name in zip(terms, node.inputs, strict=True):
            if term in self.made and len(self.before.consumers[name]) == 1:
                total = inline(total, self.made[term])
        self.b.nodes.append(total)
        self._move_ahead()
        self.forms[node.outputs[0]] = replace(form, some=some)
        return True

    def _complete(self, name: str) -> None:
        """A gradient with all that was left off."""
        form = self.forms.pop(name, None)
        if form is None:
            return
        maker = self.before.producer[name]
        self.b.tensors.pop(name)
        self.b.phase, self.b.origin, self.b.scope = maker.phase, maker.origin, maker.name
        inputs = [form.some, form.x, form.mean, form.shift, form.slope]
        self.b.emit(
            "map", inputs, outputs=(name,), exprs=("a + d + (b - c) * e",), dtypes=("float",)
        )
