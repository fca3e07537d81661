"""The loss: the model's own, or cross-entropy or squared error appended to its output.

Cross-entropy of a model that ends in Softmax is the negative log of the chosen probability, and
log softmax(z) is what the loss computes from z; so the loss reads z and nothing is lost.  A model
that ends in LogSoftmax is the same case, and log-probabilities fed to the loss as logits give the
same value as well, because log softmax is idempotent.
"""

from __future__ import annotations

from typing import Any

from ccnn.compiler.reader.context import Context, Live
from ccnn.compiler.reader.elementwise import Translate
from ccnn.compiler.reader.load import Source
from ccnn.compiler.reader.onnx_node import OnnxNode
from ccnn.compiler.reader.problems import Refusal
from ccnn.passes.graph import Node

_LOSSES = ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")
_PASSING = ("Identity", "Cast", "Squeeze", "Reshape", "Unsqueeze", "Flatten")
_FROM_EXPORT = "export the model without its loss: ccnn appends one (--loss ce or mse)"


def label_inputs(source: Source) -> set[str]:
    """Graph inputs that hold class labels: what a loss node reads as its target."""
    maker = {o: n for n in source.nodes for o in n.outputs if o}
    found = set()
    for node in source.nodes:
        if node.op not in _LOSSES or not node.has(1):
            continue
        name = node.inputs[1]
        while name in maker and maker[name].op in _PASSING:
            name = maker[name].inputs[0]
        found.add(name)
    return found & {i.name for i in source.inputs}


def _cross_entropy(c: Context) -> list[Live]:
    node = c.node
    reduction = node.text("reduction", "mean")
    if reduction not in ("mean", "sum", "none"):
        raise Refusal(f"reduction='{reduction}' is unknown")
    logits, target = c.tensor(0), c.value(1)
    if not isinstance(target, Live) or c.builder.tensors[target.tensor].dtype != "index":
        raise Refusal("its target is not a graph input of class labels", _FROM_EXPORT)
    if node.op == "NegativeLogLikelihoodLoss":
        logits = _logits_behind(c, logits, ("log_softmax",))
        if not logits:
            raise Refusal(
                "its input is not the result of a LogSoftmax over axis 1",
                "put LogSoftmax(axis=1) in front of it, or " + _FROM_EXPORT,
            )
    attrs: dict[str, Any] = {"reduction": reduction}
    if "ignore_index" in node.attrs:
        attrs["ignore_index"] = node.int("ignore_index")
    operands = [logits, target.tensor]
    if node.has(2):
        operands.append(c.constant(c.known(2)))
    asked = bool(node.output(1))
    phase, c.builder.phase = c.builder.phase, "loss"
    results = c.final_all("softmax_cross_entropy", *operands, log_prob=asked, **attrs)
    c.builder.phase = phase
    return results[: 2 if asked else 1]


def _logits_behind(c: Context, tensor: str, ops: tuple[str, ...]) -> str:
    """The operand of the softmax over axis 1 that made `tensor`, '' when none did."""
    maker = _maker(c, tensor)
    if maker and maker.op in ops and maker.attr("axis") == 1:
        return maker.inputs[0]
    return ""


def _maker(c: Context, tensor: str) -> Node | None:
    return next((n for n in reversed(c.builder.nodes) if tensor in n.outputs), None)


def add_loss(c: Context, outputs: list[str]) -> tuple[str, str]:
    """The names of the loss and of its target, appended to the graph when the model has none.

    Raises Refusal when the outputs allow no loss.
    """
    own = _own_loss(c, outputs)
    if own and c.options.loss is None:
        node = _maker(c, own)
        target = node.inputs[1] if node and node.op == "softmax_cross_entropy" else ""
        while maker := _maker(c, target):
            target = maker.inputs[0]
        c.findings.note(f"the loss is the model's own output '{own}'")
        return own, target
    b, y = c.builder, next((o for o in outputs if o != own), outputs[0])
    shape = b.shape(y)
    if len(outputs) > 1:
        c.findings.note(f"the loss is taken of the output '{y}'; the other outputs have none")
    b.phase, b.origin = "loss", ""
    if c.options.loss == "mse":
        target = b.input(c.stem("target"), shape)
        return b.emit("mse", [y, target], name="loss", outputs=[c.stem("loss")]), target
    if c.options.loss is None:
        c.findings.assume("loss: mean cross-entropy over axis 1 of the first output")
    logits = _scores(c, y)
    target = b.input(c.stem("target"), (shape[0], *shape[2:]), "index")
    c.node = OnnxNode("loss", "", "", (), (c.stem("loss"),), 0)
    loss = c.final("softmax_cross_entropy", logits, target, reduction="mean", log_prob=False)
    return loss.tensor, target


def _scores(c: Context, y: str) -> str:
    """The class scores [N, C, ...] that cross-entropy of the output `y` starts from."""
    maker, shape = _maker(c, y), c.builder.shape(y)
    if maker and maker.op == "softmax_cross_entropy":
        raise Refusal(
            f"the model's own loss '{y}' has one value for each sample",
            "export it with reduction='mean' or 'sum', or without its loss",
        )
    if len(shape) < 2:
        raise Refusal(
            f"cross-entropy needs an output [N, C, ...], '{y}' is {list(shape)}",
            "choose --loss mse, or export the model with its class scores as first output",
        )
    if logits := _logits_behind(c, y, ("softmax", "log_softmax")):
        c.findings.note(
            f"'{y}' holds softmax results: the loss is the negative log of the chosen "
            "probability, computed from the scores in front of the softmax"
        )
        return logits
    if maker and maker.op in ("softmax", "log_softmax"):
        c.findings.warning(
            f"'{y}' is normalised over axis {maker.attr('axis')}, the loss runs over axis 1"
        )
    return y


def _own_loss(c: Context, outputs: list[str]) -> str:
    """The output that is a loss already: a scalar."""
    return next((o for o in outputs if c.builder.shape(o) == ()), "")


LOSSES: dict[str, Translate] = dict.fromkeys(_LOSSES, _cross_entropy)
