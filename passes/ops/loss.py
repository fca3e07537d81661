"""Losses, and dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ccnn.passes.graph import Builder, Node, Tensor
from ccnn.passes.ops.base import Op, Result
from ccnn.passes.ops.common import (
    add_up,
    channel_shape,
    emit_map,
    emit_reduce,
    fail,
    given,
    reshaped,
    take,
)
from ccnn.passes.ops.map_reduce import Random


class SoftmaxCrossEntropy(Op):
    """-log softmax(logits)[target], weighted by weight[target], summed, averaged or as it is.

    logits [N, C, …], target [N, …]; places where target = ignore_index do not count.  The mean
    divides by the sum of the weights that counted.  Results: loss, log_prob when asked, then
    what the gradient uses: log Σ e^logits as [N, 1, …] and, when places weigh differently, their
    weights [N, 1, …] and the sum of those.
    """

    name = "softmax_cross_entropy"

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        logits, target, weight = take(node, inputs, 2, 3)
        if logits is None or target is None or len(logits.shape) < 2:
            fail(node, "needs logits [N, C, …] and target [N, …]")
        shape = logits.shape
        if target.shape != (shape[0], *shape[2:]) or target.dtype != "index":
            fail(node, f"target is {target.dtype} {target.shape}, logits are {shape}")
        if weight is not None and weight.shape != shape[1:2]:
            fail(node, f"weight has shape {weight.shape}, it should be {shape[1:2]}")
        if node.attr("reduction", "mean") not in ("mean", "sum", "none"):
            fail(node, f"reduction {node.attr('reduction')!r} is none of mean, sum, none")
        line, one = (shape[0], 1, *shape[2:]), (1,) * len(shape)
        loss = target.shape if node.attr("reduction", "mean") == "none" else ()
        results: list[Result] = [(loss, "accum")]
        if node.attr("log_prob", False):
            results.append((shape, "float"))
        results.append((line, "accum"))
        if self.uneven(node, weight is not None):
            results += [(line, "accum"), (one, "accum")]
        return results

    def uneven(self, node: Node, weighted: bool) -> bool:
        """True when places do not all weigh the same."""
        return weighted or node.attr("ignore_index") is not None

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        logits, target, weight = (*inputs, None)[:3]
        logits, target = np.asarray(logits), np.asarray(target).astype(np.int64)
        top = logits.max(axis=1, keepdims=True)
        lse = top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
        log_prob = logits - lse
        counted = target != node.attr("ignore_index", None)
        safe = np.where(counted, target, 0)
        w = np.ones(logits.shape[1], logits.dtype) if weight is None else weight
        share = w[safe] * counted
        losses = -np.take_along_axis(log_prob, safe[:, None], 1)[:, 0] * share
        total = share.sum()
        how = node.attr("reduction", "mean")
        with np.errstate(all="ignore"):
            loss = {"none": losses, "sum": losses.sum(), "mean": losses.sum() / total}[how]
        results: list[Any] = [loss, *([log_prob] if node.attr("log_prob", False) else []), lse]
        if self.uneven(node, weight is not None):
            results += [share[:, None], total.reshape((1,) * logits.ndim)]
        return results

    def _class_numbers(self, b: Builder, logits: str) -> str:
        shape = b.shape(logits)
        numbers = np.arange(shape[1], dtype=np.int32).reshape(channel_shape(shape[1], len(shape)))
        return b.constant(numbers, "classes", "index")

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        logits, target, weight = (*node.inputs, "")[:3]
        shape = b.shape(logits)
        line, rank = (shape[0], 1, *shape[2:]), len(shape)
        classes, place = self._class_numbers(b, logits), reshaped(b, target, line)
        top = max_of(b, logits)
        total, chosen = emit_reduce(
            b,
            "sum",
            [logits, top, classes, place],
            ["exp(a - b)", "where(c == d, a - b, 0)"],
            [1],
            ["accum", "accum"],
        )
        lse = emit_map(b, [top, total], ["a + log(b)"], ["accum"])[0]
        extras, weigh, operands = [lse], "", [total, chosen]
        if self.uneven(node, bool(weight)):
            share = self._share(b, node, classes, place, weight)
            whole = emit_reduce(b, "sum", [share], ["a"], range(rank), ["accum"])[0]
            extras += [share, whole]
            operands, weigh = [total, chosen, share], " * c"
        loss = self._loss(b, node, operands, f"(log(a) - b){weigh}", extras)
        if node.attr("log_prob", False):
            extras = [*emit_map(b, [logits, lse], ["a - b"], ["float"]), *extras]
        return [loss, *extras]

    def _share(self, b: Builder, node: Node, classes: str, place: str, weight: str) -> str:
        """The weight of each place."""
        ignored = node.attr("ignore_index")
        mask = "1" if ignored is None else f"(1 - (b == {ignored}))"
        if not weight:
            return emit_map(b, [place, place], [mask], ["accum"])[0]
        column = reshaped(b, weight, b.shape(classes))
        return emit_reduce(
            b, "sum", [classes, place, column], [f"where(a == b, c, 0) * {mask}"], [1], ["accum"]
        )[0]

    def _loss(
        self, b: Builder, node: Node, operands: list[str], text: str, extras: Sequence[str]
    ) -> str:
        how, result = node.attr("reduction", "mean"), b.shape(node.outputs[0])
        if how == "none":
            return reshaped(b, emit_map(b, operands, [text], ["accum"])[0], result)
        rank, count = len(b.shape(operands[0])), b.tensors[operands[0]].size
        if how == "mean" and len(extras) == 1:
            text = f"{text} * {1 / count!r}"
        loss = emit_reduce(b, "sum", operands, [text], range(rank), ["accum"])[0]
        if how == "mean" and len(extras) == 3:
            loss = emit_map(b, [loss, extras[2]], ["a / b"], ["accum"])[0]
        return reshaped(b, loss, result)

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        """dlogits = (softmax - onehot) weight / total dloss; through log_prob as log_softmax."""
        grads: list[str | None] = [None] * len(node.inputs)
        if not wanted[0]:
            return grads
        logits, asked = node.inputs[0], bool(node.attr("log_prob", False))
        extras = node.outputs[2:] if asked else node.outputs[1:]
        dtype, terms = b.tensors[logits].dtype, []
        if douts[0] is not None:
            terms.append(self._from_loss(b, node, douts[0], extras))
        if asked and douts[1] is not None:
            total = emit_reduce(b, "sum", [douts[1]], ["a"], [1], ["accum"])[0]
            operands = [douts[1], logits, extras[0], total]
            terms += emit_map(b, operands, ["a - exp(b - c) * d"], [dtype])
        if terms:
            grads[0] = add_up(b, terms, dtype)
        return grads

    def _from_loss(self, b: Builder, node: Node, dloss: str, extras: Sequence[str]) -> str:
        logits, line = node.inputs[0], b.shape(extras[0])
        place, classes = reshaped(b, node.inputs[1], line), self._class_numbers(b, logits)
        how = node.attr("reduction", "mean")
        dloss = reshaped(b, dloss, line if how == "none" else (1,) * len(line))
        operands, text = [logits, extras[0], classes, place, dloss], "(exp(a - b) - (c == d)) * e"
        if len(extras) == 3:
            operands, text = [*operands, *extras[1:]], text + " * f"
            text += " / g" if how == "mean" else ""
        elif how == "mean":
            text += f" * {1 / b.tensors[extras[0]].size!r}"
        return emit_map(b, operands, [text], [b.tensors[logits].dtype])[0]


def max_of(b: Builder, logits: str) -> str:
    """The largest logit of each place."""
    return emit_reduce(b, "max", [logits], ["a"], [1], ["accum"])[0]


class Mse(Op):
    """The mean of the squared differences."""

    name = "mse"

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        pred, target = given(take(node, inputs, 2))
        if pred.shape != target.shape:
            fail(node, f"the prediction has shape {pred.shape}, the target {target.shape}")
        return [((), "accum")]

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        return [np.asarray(np.mean(np.square(np.asarray(inputs[0]) - np.asarray(inputs[1]))))]

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        shape, n = b.shape(node.inputs[0]), b.tensors[node.inputs[0]].size
        total = emit_reduce(
            b, "sum", node.inputs, [f"(a - b) * (a - b) * {1 / n!r}"], range(len(shape)), ["accum"]
        )[0]
        return [reshaped(b, total, ())]

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        grads: list[str | None] = [None, None]
        if douts[0] is None:
            return grads
        x = b.tensors[node.inputs[0]]
        dloss = reshaped(b, douts[0], (1,) * len(x.shape))
        chosen = [k for k in (0, 1) if wanted[k]]
        signs = [f"(a - b) * c * {(2 - 4 * k) / x.size!r}" for k in chosen]
        results = (
            emit_map(b, [*node.inputs, dloss], signs, [x.dtype] * len(chosen)) if chosen else ()
        )
        for k, name in zip(chosen, results, strict=True):
            grads[k] = name
        return grads


class Dropout(Op):
    """Elements kept with probability 1 - ratio and scaled by its reciprocal; also the mask."""

    name = "dropout"

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Result]:
        x, ratio = given(take(node, inputs, 1))[0], node.attr("ratio", 0.5)
        if not isinstance(ratio, float | int) or not 0 <= ratio < 1:
            fail(node, f"ratio {ratio!r} is not in [0, 1)")
        return [(x.shape, x.dtype), (x.shape, "bytes")]

    def _random(self, node: Node, shape: Sequence[int]) -> dict[str, Any]:
        return {"shape": tuple(shape), "seed": node.attr("seed", 0)}

    def reference(self, node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        x, ratio = np.asarray(inputs[0]), node.attr("ratio", 0.5)
        draw = Node("draw", "random", (), ("r",)).with_attrs(
            **self._random(node, x.shape), step=node.attr("step", 0)
        )
        mask = Random().reference(draw, [])[0] >= ratio
        return [x * mask * (1 / (1 - ratio)), mask]

    def expand(self, b: Builder, node: Node) -> Sequence[str]:
        x, ratio = b.tensors[node.inputs[0]], float(node.attr("ratio", 0.5))
        draw = b.emit("random", [], **self._random(node, x.shape))
        exprs = [f"where(b >= {ratio!r}, a * {1 / (1 - ratio)!r}, 0)", f"b >= {ratio!r}"]
        return emit_map(b, [x.name, draw], exprs, [x.dtype, "bytes"])

    def gradient(
        self, b: Builder, node: Node, douts: Sequence[str | None], wanted: Sequence[bool]
    ) -> list[str | None]:
        if douts[0] is None:
            return [None]
        scale = 1 / (1 - float(node.attr("ratio", 0.5)))
        dtype = b.tensors[node.inputs[0]].dtype
        return [emit_map(b, [douts[0], node.outputs[1]], [f"a * b * {scale!r}"], [dtype])[0]]


LOSS: tuple[Op, ...] = (SoftmaxCrossEntropy(), Mse(), Dropout())
