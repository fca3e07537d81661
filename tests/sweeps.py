"""DRAM traffic of the conventional training step, summed from layer shapes: an oracle for tests.

Written from the definition of the schedule alone (every layer on the whole mini-batch, through
DRAM), not from the lowered graph: each function lists what one layer reads and writes, forward
and backward.  Of the mapping only the tile sizes and loop orders are used, to count what a layer
that does not fit the buffer reads again.  Elements are 2 bytes; statistics, the optimizer's
velocity and the numbers of the loss 4, class indices 4, argmax 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from math import prod

from ccnn.compiler.mapping import Tiling
from ccnn.passes.graph import Graph, Node

FLOAT, STATISTIC, VELOCITY, INDEX, ARGMAX = 2, 4, 4, 4, 1
NORMS, ACTIVATIONS = ("batch_norm",), ("relu", "clip")


class Sweeps:
    """Bytes by (phase, what moved); `differences` are in it too, and name what is not a sweep."""

    def __init__(self, graph: Graph, loss: str, tilings: Mapping[str, Tiling]) -> None:
        self.graph, self.loss, self.tilings = graph, loss, tilings
        self.bytes: Counter[tuple[str, str]] = Counter()
        self.differences: Counter[str] = Counter()
        self.learning = self._learning()
        self.leading = self._leading()
        for node in graph.nodes:
            self.layer(node)
        self.sums_of_gradients()
        self.update()

    def phase(self, name: str) -> int:
        """Bytes of one phase."""
        return sum(n for (phase, _), n in self.bytes.items() if phase == name)

    @property
    def total(self) -> int:
        """Bytes of the step."""
        return sum(self.bytes.values())

    def what(self) -> dict[str, int]:
        """Bytes by what moved, whatever the phase."""
        found: Counter[str] = Counter()
        for (_, what), n in self.bytes.items():
            found[what] += n
        return dict(found)

    def _learning(self) -> set[str]:
        """Tensors that depend on a parameter: those that have a gradient."""
        found = {t.name for t in self.graph.of_role("parameter")}
        for node in self.graph.nodes:
            if found & set(node.inputs):
                found |= set(node.outputs)
        return found

    def _leading(self) -> set[str]:
        """Nodes on a way to the loss; the others have no backward part."""
        wanted, found = {self.loss}, set()
        for node in reversed(self.graph.nodes):
            if wanted & set(node.outputs):
                found.add(node.name)
                wanted |= set(node.inputs)
        return found

    def size(self, tensor: str) -> int:
        """Bytes of a tensor of features or weights."""
        return self.graph[tensor].size * FLOAT

    def move(self, phase: str, what: str, *parts: int) -> None:
        """Count bytes."""
        self.bytes[phase, what] += sum(parts)

    def vectors(self, phase: str, *parts: int) -> None:
        """Per-channel vectors and other small things that the published sums leave out."""
        self.move(phase, "vectors", *parts)

    def layer(self, node: Node) -> None:
        """Forward and, where the layer leads to the loss, backward."""
        table: dict[str, Callable[[Node], None]] = {
            "conv": self.conv, "matmul": self.matmul, "batch_norm": self.norm,
            "relu": self.activation, "clip": self.activation, "add": self.add, "mul": self.mul,
            "concat": self.concat, "max_pool": self.max_pool, "avg_pool": self.avg_pool,
            "reduce_mean": self.mean, "softmax": self.softmax,
            "softmax_cross_entropy": self.cross_entropy, "reshape": lambda _: None,
        }  # fmt: skip
        table[node.op](node)

    # layers on the array
    def conv(self, node: Node) -> None:
        x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
        (n, c, h, wide), (k, _, r, s) = self.graph[x].shape, self.graph[w].shape
        p, q = self.graph[y].shape[2:]
        a = node.attributes
        groups, (top, left) = a["group"], a["pads"][:2]
        (sh, sw), (dh, dw) = a["strides"], a["dilations"]
        image = self.size(x) // (h * wide)
        result = self.size(y) // (p * q)
        plain = {"g": groups, "n": n, "k": k // groups, "c": c // groups}

        def tiled_x(tile: Mapping[str, int]) -> int:
            rows = covered(p, tile["p"], h, lambda o: window(o, sh, dh, r, top))
            columns = covered(q, tile["q"], wide, lambda o: window(o, sw, dw, s, left))
            return image * rows * columns

        def tiled_dy(tile: Mapping[str, int]) -> int:
            rows = covered(h, tile["h"], p, lambda i: readers(i, sh, dh, r, top))
            columns = covered(wide, tile["w"], q, lambda i: readers(i, sw, dw, s, left))
            return result * rows * columns

        def whole(tensor: str) -> Callable[[Mapping[str, int]], int]:
            return lambda _: self.size(tensor)

        self.gemm("forward", "conv forward", node.name, {**plain, "p": p, "q": q}, {
            x: ("gnpqc", tiled_x), w: ("gkc", whole(w)),
        }, y)  # fmt: skip
        self.bias(node)
        if node.name not in self.leading:
            return
        name = f"{node.name}/grad/conv_dw"
        self.gemm("backward", "conv dW", name, {**plain, "p": p, "q": q}, {
            x: ("gcnpq", tiled_x), y: ("gknpq", whole(y)),
        }, w)  # fmt: skip
        if x in self.learning:
            name = f"{node.name}/grad/conv_dx"
            self.gemm("backward", "conv dX", name, {**plain, "h": h, "w": wide}, {
                y: ("gnhwk", tiled_dy), w: ("gck", whole(w)),
            }, x)  # fmt: skip

    def matmul(self, node: Node) -> None:
        x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
        rows, depth = prod(self.graph[x].shape[:-1]), self.graph[x].shape[-1]
        columns = self.graph[y].shape[-1]

        def product(
            phase: str, name: str, m: int, n: int, k: int, a: str, b: str, result: str
        ) -> None:
            operands = {a: ("mk", lambda _: m * k * FLOAT), b: ("nk", lambda _: n * k * FLOAT)}
            self.gemm(phase, "fully connected", name, {"m": m, "n": n, "k": k}, operands, result)

        product("forward", node.name, rows, columns, depth, x, w, y)
        self.bias(node)
        if node.name in self.leading:
            first, second = self.graph[w].shape
            a, b = (y, x) if first == columns else (x, y)
            grad = f"{node.name}/grad/matmul"
            product("backward", grad, first, second, rows, a, b, w)
            if x in self.learning:
                product("backward", f"{grad}.1", rows, depth, columns, y, w, x)

    def bias(self, node: Node) -> None:
        """Read forward; its gradient is a sum over a sweep of dy."""
        if len(node.inputs) < 3:
            return
        self.vectors("forward", self.size(node.inputs[2]))
        if node.name in self.leading:
            self.move("backward", "bias gradient", self.size(node.outputs[0]))
            self.vectors("backward", self.size(node.inputs[2]))

    def gemm(
        self, phase: str, what: str, name: str, totals: Mapping[str, int],
        operands: Mapping[str, tuple[str, Callable[[Mapping[str, int]], int]]], result: str,
    ) -> None:  # fmt: skip
        """Both operands read and the result written once; tiles add halos and repeated reads."""
        tiling = self.tilings[name]
        tile = dict(tiling.tiles)
        self.move(phase, what, self.size(result))
        for tensor, (levels, tiled) in operands.items():
            size, once = self.size(tensor), tiled(tile)
            again = once * (repeats(tiling, totals, levels) - 1)
            self.move(phase, what, size, once - size, again)
            self.differences["halo rows read twice, rows between strides not read"] += once - size
            self.differences["operands read again, layer larger than the buffer"] += again

    # layers on the vector unit
    def norm(self, node: Node) -> None:
        x, y = node.inputs[0], node.outputs[0]
        c = self.graph[node.inputs[1]].size
        self.move("forward", "norm forward", 2 * self.size(x), self.size(y))
        # mean and variance out, 1 / deviation made of the variance, both in, scale and bias in
        self.vectors("forward", c * (2 + 2 + 2) * STATISTIC, 2 * c * FLOAT)
        # running mean and variance: in, together with the batch's, and out
        self.vectors("forward", 2 * c * (FLOAT + STATISTIC + FLOAT))
        if node.name not in self.leading:
            return
        self.move("backward", "norm backward", 4 * self.size(y), self.size(x))
        if self.fused_activation(y):
            self.move("backward", "norm backward", self.size(y))
            self.move("backward", "activation read again in place of a mask", self.size(y))
            self.differences[
                "activation read in both sweeps of the norm's gradient, not in one"
            ] += self.size(y)
        # sums: mean and 1 / deviation in, two out; three factors made of these, 1 / deviation and
        # the scale, then in with mean and 1 / deviation
        self.vectors("backward", c * (2 + 2 + 3 + 3 + 5) * STATISTIC, c * FLOAT)
        # gradients of scale and bias: sums in, both out
        self.vectors("backward", c * 2 * STATISTIC, 2 * c * FLOAT)

    def fused_activation(self, tensor: str) -> Node | None:
        """The activation that runs in the sweep that makes this tensor, if any does."""
        maker, readers_ = self.graph.producer[tensor], self.graph.consumers[tensor]
        if maker.op not in (*NORMS, "add") or tensor in self.graph.outputs or len(readers_) != 1:
            return None
        return readers_[0] if readers_[0].op in ACTIVATIONS else None

    def activation(self, node: Node) -> None:
        x, y = node.inputs[0], node.outputs[0]
        maker = self.graph.producer[x]
        fused = self.fused_activation(x) is node
        if not fused:
            self.move("forward", "activation", self.size(x), self.size(y))
        if not (fused and maker.op in NORMS) and node.name in self.leading:
            what = "add backward" if fused else "activation"
            self.move("backward", what, 2 * self.size(y), self.size(x))

    def add(self, node: Node) -> None:
        a, b = node.inputs
        y = node.outputs[0]
        self.move("forward", "add forward", self.size(a), self.size(b), self.size(y))
        for operand in (a, b):  # the gradient of a whole operand is the sum's own
            if self.graph[operand].size < self.graph[y].size and node.name in self.leading:
                self.move("backward", "scale and shift", self.size(y))
                self.vectors("backward", self.size(operand))

    def mul(self, node: Node) -> None:
        y = node.outputs[0]
        x, vector = sorted(node.inputs, key=lambda t: -self.graph[t].size)
        self.move("forward", "scale and shift", self.size(x), self.size(y))
        self.vectors("forward", self.size(vector))
        self.move("backward", "scale and shift", 2 * self.size(x), 2 * self.size(y))
        self.vectors("backward", 2 * self.size(vector))

    def concat(self, node: Node) -> None:
        parts = [self.size(x) for x in node.inputs]
        self.move("forward", "concat", 2 * sum(parts))
        self.move("backward", "concat", *(
            2 * self.size(x) for x in node.inputs if x in self.learning
        ))  # fmt: skip

    def max_pool(self, node: Node) -> None:
        x, y = node.inputs[0], node.outputs[0]
        argmax = self.graph[y].size * ARGMAX
        self.move("forward", "pool", self.size(x), self.size(y), argmax)
        self.move("backward", "pool", self.size(y), argmax, self.size(x))

    def avg_pool(self, node: Node) -> None:
        x, y = node.inputs[0], node.outputs[0]
        for phase in ("forward", "backward"):
            self.move(phase, "pool", self.size(x), self.size(y))
            self.move(phase, "division of a pool's sums", 2 * self.size(y))
            self.differences["division by the window in a sweep of its own"] += 2 * self.size(y)

    def mean(self, node: Node) -> None:
        x, y = node.inputs[0], node.outputs[0]
        for phase in ("forward", "backward"):
            self.move(phase, "pool", self.size(x), self.size(y))
        # forward, the division is part of the sum; backward it is a sweep over the small side
        self.move("backward", "division of a pool's sums", 2 * self.size(y))
        self.differences["division by the window in a sweep of its own"] += 2 * self.size(y)

    def softmax(self, node: Node) -> None:
        x = node.inputs[0]
        rows = self.graph[x].size // self.graph[x].shape[node.attr("axis")] * STATISTIC
        # largest; sum of exponentials; quotient
        self.move("forward", "loss", 3 * self.size(x), self.size(node.outputs[0]), 5 * rows)

    def cross_entropy(self, node: Node) -> None:
        logits = node.inputs[0]
        classes = self.graph[logits].shape[1] * INDEX
        rows = self.graph[logits].size // self.graph[logits].shape[1] * STATISTIC
        # largest of each row; sum of exponentials and the target's logit; their logarithm; mean
        self.move("loss", "loss", 2 * self.size(logits), classes, rows + rows + 2 * rows)
        self.move("loss", "loss", rows, 2 * rows + rows, 2 * rows + STATISTIC)
        self.move("backward", "loss", 2 * self.size(logits), classes, 2 * rows)

    # what no single layer does
    def sums_of_gradients(self) -> None:
        """A tensor read by several layers: two partial gradients read and one written, each."""
        for tensor in self.learning:
            readers_ = [n for n in self.graph.nodes if n.name in self.leading]
            uses = sum(n.inputs.count(tensor) for n in readers_)
            if uses > 1:
                self.move("backward", "sum of gradients", (uses - 1) * 3 * self.size(tensor))

    def update(self) -> None:
        """Momentum: weight, gradient and velocity in, weight and velocity out."""
        for parameter in self.graph.of_role("parameter"):
            self.move("update", "update", parameter.size * (3 * FLOAT + 2 * VELOCITY))


def repeats(tiling: Tiling, totals: Mapping[str, int], levels: str) -> int:
    """How often a whole operand is read: once for each round of the loops that do not move it and
    stand outside the innermost loop that does."""
    tile = dict(tiling.tiles)
    trips = [-(-totals[level] // tile[level]) for level in tiling.order]
    moving = [i for i, level in enumerate(tiling.order) if level in levels and trips[i] > 1]
    outside = range(moving[-1] + 1 if moving else 0)
    return prod(trips[i] for i in outside if tiling.order[i] not in levels)


def covered(
    results: int, tile: int, size: int, needs: Callable[[Iterable[int]], Iterable[int]]
) -> int:
    """Places of an axis that the tiles read in all, from the first to the last each needs."""
    total = 0
    for start in range(0, results, tile):
        inside = sorted(needs(range(start, min(start + tile, results))))
        total += max(0, min(inside[-1], size - 1) - max(inside[0], 0) + 1)
    return total


def window(results: Iterable[int], stride: int, dilation: int, taps: int, pad: int) -> set[int]:
    """Input places that some results of a convolution read, padding included."""
    return {o * stride + t * dilation - pad for o in results for t in range(taps)}


def readers(places: Iterable[int], stride: int, dilation: int, taps: int, pad: int) -> set[int]:
    """Results that read some input places, those that lie outside included."""
    found = {i + pad - t * dilation for i in places for t in range(taps)}
    return {o // stride for o in found if o % stride == 0}
