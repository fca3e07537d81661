"""Reverse-mode differentiation: appends backward and update nodes to a forward graph.

Each op says its own gradient; here they are chained.  Only what leads from a wanted tensor to
the loss is differentiated, so the first layer has no dX.  Where a tensor is read more than once
its gradients are summed by `add` nodes as they arrive.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from ccnn.passes.graph import Graph, GraphError, Node
from ccnn.passes.ops import op_named
from ccnn.passes.prune import live_nodes
from ccnn.passes.scope import ScopedBuilder


@dataclass(frozen=True)
class Optimizer:
    """How parameters step; defined as in PyTorch (see passes/ops/optimizer.py)."""

    kind: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        if self.kind not in ("sgd", "adam", "adamw"):
            raise GraphError(f"optimizer '{self.kind}' is none of sgd, adam, adamw")
        for name in ("lr", "momentum", "weight_decay", "beta1", "beta2", "epsilon"):
            if not np.isfinite(getattr(self, name)) or getattr(self, name) < 0:
                raise GraphError(f"the optimizer's {name} = {getattr(self, name)} must be >= 0")
        if self.nesterov and not self.momentum:
            raise GraphError("nesterov needs a momentum above 0")


def differentiate(
    graph: Graph,
    loss: str,
    *,
    wanted: Iterable[str] | None = None,
    input_gradients: Sequence[str] = (),
    frozen: Sequence[str] = (),
    optimizer: Optimizer | None = None,
) -> Graph:
    """The graph with backward nodes, and update nodes when an optimizer is given.

    `wanted` names the parameters to train (default: every float parameter that reaches the
    loss), `frozen` holds patterns (fnmatch) of parameters to leave alone, `input_gradients`
    names inputs.  Fills `gradients`, and `updates` with parameters, optimizer state and running
    statistics.  Raises GraphError when the loss is no scalar, or a named tensor does not exist
    or does not reach the loss.
    """
    _check_loss(graph, loss)
    graph, running = _chain_state(_named_results(graph))
    b = ScopedBuilder(base=graph)
    parameters = _trainable(graph, loss, wanted, frozen)
    for name in input_gradients:
        if name not in graph.tensors or graph[name].role == "value":
            raise GraphError(f"a gradient is asked for '{name}', which is no input of the graph")
    targets = [*parameters, *input_gradients]
    found = _backward(b, graph, loss, targets)
    lost = [t for t in targets if t not in found]
    if wanted is not None or input_gradients:
        for name in lost:
            if name in input_gradients or (wanted is not None and name in parameters):
                raise GraphError(f"'{name}' does not influence the loss '{loss}'")
    b.gradients = {**b.gradients, **{t: found[t] for t in targets if t in found}}
    b.updates = {**b.updates, **running}
    if optimizer is not None:
        _update(b, optimizer, [p for p in parameters if p in found])
    outputs = graph.outputs if loss in graph.outputs else (*graph.outputs, loss)
    whole = b.build(outputs)
    return whole.with_nodes(live_nodes(whole))


def _check_loss(graph: Graph, loss: str) -> None:
    if loss not in graph.tensors:
        raise GraphError(f"the loss '{loss}' is no tensor of the graph")
    if graph[loss].size != 1:
        raise GraphError(f"the loss '{loss}' has shape {graph[loss].shape}, it must be one number")


def _named_results(graph: Graph) -> Graph:
    """Every result has a name, as gradients may read those that a graph by hand leaves out."""
    if all(all(node.outputs) for node in graph.nodes):
        return graph
    b, nodes = ScopedBuilder(base=graph), []
    for node in graph.nodes:
        results = op_named(node.op).infer(node, [graph[i] if i else None for i in node.inputs])
        names = [
            name or b.declare(b.fresh(f"{node.name}.{k}"), shape, "value", dtype)
            for k, (name, (shape, dtype)) in enumerate(zip(node.outputs, results, strict=True))
        ]
        nodes.append(replace(node, outputs=tuple(names)))
    return replace(graph, nodes=tuple(nodes), tensors=dict(b.tensors))


def _chain_state(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """Running statistics: state to its new value; a state used twice is updated twice in turn."""
    latest: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        inputs = list(node.inputs)
        for result, place in op_named(node.op).updates.items():
            state = node.inputs[place]
            if state in graph.tensors and graph[state].role == "state":
                inputs[place] = latest.get(state, state)
                latest[state] = node.outputs[result]
        nodes.append(replace(node, inputs=tuple(inputs)))
    return replace(graph, nodes=tuple(nodes)), latest


def _trainable(
    graph: Graph, loss: str, wanted: Iterable[str] | None, frozen: Sequence[str]
) -> list[str]:
    if wanted is None:
        reaching = _reaching(graph, loss)
        names = [
            t.name for t in graph.of_role("parameter") if t.dtype == "float" and t.name in reaching
        ]
    else:
        names = list(dict.fromkeys(wanted))
        for name in names:
            if name not in graph.tensors or graph[name].role != "parameter":
                raise GraphError(f"'{name}' is to be trained, but it is no parameter of the graph")
    for pattern in frozen:
        if not any(fnmatchcase(t.name, pattern) for t in graph.of_role("parameter")):
            raise GraphError(f"the pattern '{pattern}' freezes nothing: no parameter matches it")
    return [n for n in names if not any(fnmatchcase(n, p) for p in frozen)]


def _reaching(graph: Graph, loss: str) -> set[str]:
    """Every tensor that the loss depends on, the loss among them."""
    reached = {loss}
    for node in reversed(graph.nodes):
        if any(o in reached for o in node.outputs):
            reached.update(i for i in node.inputs if i)
    return reached


def _depending(graph: Graph, targets: Sequence[str]) -> set[str]:
    """Every real-valued tensor that depends on a target, the targets among them."""
    reached = set(targets)
    for node in graph.nodes:
        if any(i in reached for i in node.inputs):
            reached.update(o for o in node.outputs if o and graph[o].dtype in ("float", "accum"))
    return reached


def _backward(b: ScopedBuilder, graph: Graph, loss: str, targets: Sequence[str]) -> dict[str, str]:
    """Append the backward nodes; give tensor to gradient for all that were differentiated."""
    needs = _depending(graph, targets) & _reaching(graph, loss)
    found: dict[str, str] = {}
    if loss in needs:
        found[loss] = b.constant(np.ones(graph[loss].shape, np.float32), "one", graph[loss].dtype)
    b.phase = "backward"
    for node in reversed(graph.nodes):
        wanted = [i in needs for i in node.inputs]
        if not any(wanted) or not any(o in found for o in node.outputs):
            continue
        b.origin, b.scope = node.origin, f"{node.name}/grad"
        douts = [found.get(o) for o in node.outputs]
        grads = op_named(node.op).gradient(b, node, douts, wanted)
        for name, want, grad in zip(node.inputs, wanted, grads, strict=True):
            if want and grad is not None:
                found[name] = _sum_up(b, graph, name, found.get(name), grad)
    b.scope = ""
    return found


def _sum_up(b: ScopedBuilder, graph: Graph, name: str, before: str | None, grad: str) -> str:
    if before is None:
        return grad
    producer: Node | None = graph.producer.get(name)
    origin, scope = b.origin, b.scope
    if producer is not None:
        b.origin, b.scope = producer.origin, f"{producer.name}/fan_in"
    total = b.emit("add", [before, grad])
    b.origin, b.scope = origin, scope
    return total


def _update(b: ScopedBuilder, optimizer: Optimizer, parameters: Sequence[str]) -> None:
    b.phase, b.origin = "update", ""
    step = ""
    if optimizer.kind != "sgd" and parameters:
        count = b.declare("optimizer/step", (), "state", "accum", np.zeros((), np.float32))
        step = b.emit("map", [count], name=count, exprs=("a + 1",), dtypes=("accum",))
        b.updates[count] = step
    for name in parameters:
        b.scope = f"{name}/update"
        grad, o = b.gradients[name], optimizer
        if o.kind == "sgd":
            slots = [_state(b, "momentum", name)] if o.momentum else []
            results = b.emit_all(
                "sgd",
                [name, grad, *slots],
                lr=o.lr,
                momentum=o.momentum,
                weight_decay=o.weight_decay,
                nesterov=o.nesterov,
            )
        else:
            slots = [_state(b, "mean", name), _state(b, "square", name)]
            results = b.emit_all(
                "adam",
                [name, grad, *slots, step],
                lr=o.lr,
                beta1=o.beta1,
                beta2=o.beta2,
                epsilon=o.epsilon,
                weight_decay=o.weight_decay,
                decoupled=o.kind == "adamw",
            )
        b.updates.update(zip([name, *slots], results, strict=True))
    b.scope = ""


def _state(b: ScopedBuilder, what: str, parameter: str) -> str:
    shape = b.shape(parameter)
    return b.declare(f"{what}/{parameter}", shape, "state", "accum", np.zeros(shape, np.float32))
