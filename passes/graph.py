"""The graph: tensors, nodes and the frozen graph they form; `Builder` makes one.

A graph is a straight-line program: nodes in execution order, each reading and writing named
tensors, every tensor written at most once.  Inside, the same facts are kept as a
networkx.MultiDiGraph (node names; one edge per tensor use), which the passes walk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import networkx as nx
import numpy as np

Attr = int | float | bool | str | tuple["Attr", ...]
"""What an attribute may hold; tuples nest."""

Role = Literal["input", "parameter", "state", "constant", "value"]
"""input: fed each step; parameter: trained; state: carried from step to step but not trained
(running statistics, momentum); constant: known when compiling; value: computed by a node."""

Phase = Literal["forward", "loss", "backward", "update"]

DTYPES = ("float", "accum", "index", "bytes")
"""float: the precision the user chose for the step; accum: the accumulation precision of that
choice (float32 at least); index: int32; bytes: uint8."""


class GraphError(Exception):
    """A graph that breaks a rule of the language, or a pass asked to do what it cannot."""


@dataclass(frozen=True)
class Tensor:
    """A named array of fixed shape."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float"
    role: Role = "value"

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64)) if self.shape else 1


@dataclass(frozen=True)
class Node:
    """One operation: `outputs = op(inputs) {attrs}`; an absent optional input is ''."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: tuple[tuple[str, Attr], ...] = ()
    origin: str = ""
    """The ONNX node this one serves; '' when it serves none."""
    phase: Phase = "forward"

    def attr(self, name: str, default: Any = None) -> Any:
        """The attribute called `name`, or `default`."""
        return next((v for k, v in self.attrs if k == name), default)

    @property
    def attributes(self) -> dict[str, Any]:
        """All attributes as a dictionary."""
        return dict(self.attrs)

    def with_attrs(self, **changes: Attr) -> Node:
        """A copy with some attributes set."""
        return replace(self, attrs=freeze_attrs({**self.attributes, **changes}))


def freeze_attrs(attrs: Mapping[str, Any]) -> tuple[tuple[str, Attr], ...]:
    """Attributes as a sorted tuple; lists and numpy scalars become tuples and plain numbers."""
    return tuple(sorted((k, _plain(v)) for k, v in attrs.items()))


def _plain(value: Any) -> Attr:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | list | tuple):
        return tuple(_plain(v) for v in value)
    return value


@dataclass(frozen=True)
class Group:
    """Nodes executed as one block, `sub_batch` samples at a time (0: the whole batch, no loop).

    `nodes` follow each other in execution order.  A `resident` tensor lives in the buffer while
    an iteration runs and is never read from DRAM a second time inside the group: one that is
    written inside goes to DRAM once as well when it is needed outside, one that is written
    outside is read once an iteration.  A `kept` tensor has no batch dimension and stays in the
    buffer over all iterations: a weight that is read once, a sum over the batch that is written
    once, after the last iteration.

    With `rows`, each iteration runs image band by image band: so many rows of the coarsest tensor
    at a time, and of the others what belongs to them (passes/row_bands.py).  A resident tensor
    then holds what one band needs of it.  `carried`: rows that the next band needs as well stay in
    the buffer, instead of being made again.

    `interleaved`: the array takes turns with both nodes, dX and dW of a layer, element by element
    of the dY that passes it.

    In `halves`, an iteration's samples go through the nodes as two parts, one behind the other, so
    that the array works on one part while the vector unit works on the other.

    `ahead`: what later nodes need may be fetched early into most of the room that is left, at the
    expense of tiles.

    `backwards`: the last samples go first.  Of the tensors that are `left` the last samples that
    pass stay in the buffer when the group ends, and the next group has `found` them there: they
    are the first that pass.
    """

    nodes: tuple[str, ...]
    sub_batch: int = 0
    resident: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    rows: int = 0
    """0: whole images."""
    interleaved: bool = False
    carried: bool = False
    halves: bool = False
    ahead: bool = False
    backwards: bool = False
    found: tuple[str, ...] = ()
    found_samples: int = 0
    left: tuple[str, ...] = ()
    left_samples: int = 0


@dataclass(frozen=True)
class Graph:
    """A frozen program of nodes over tensors.

    `gradients` maps a parameter (or input) to the tensor that holds its gradient, `updates` a
    parameter or state tensor to the tensor that replaces it after the step.  `data` holds the
    values of constants, parameters and state; it is not part of a graph's identity.  `groups`
    are runs of nodes that execute as one block; a node in no group is a block of its own.
    """

    name: str
    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    gradients: Mapping[str, str] = field(default_factory=dict)
    updates: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)
    groups: tuple[Group, ...] = ()

    def __getitem__(self, tensor: str) -> Tensor:
        return self.tensors[tensor]

    def of_role(self, *roles: Role) -> list[Tensor]:
        """The tensors that play one of these roles, in the order they were declared."""
        return [t for t in self.tensors.values() if t.role in roles]

    @cached_property
    def producer(self) -> dict[str, Node]:
        """Tensor name to the node that writes it."""
        return {o: n for n in self.nodes for o in n.outputs if o}

    @cached_property
    def consumers(self) -> dict[str, list[Node]]:
        """Tensor name to the nodes that read it, each once, in execution order."""
        uses: dict[str, list[Node]] = {t: [] for t in self.tensors}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                if name:
                    uses[name].append(node)
        return uses

    @cached_property
    def needed(self) -> frozenset[str]:
        """Tensors that must exist when the step ends: outputs, gradients and updates."""
        return frozenset((*self.outputs, *self.gradients.values(), *self.updates.values()))

    @cached_property
    def group_of(self) -> dict[str, Group]:
        """Node name to the group it is in; nodes in no group are left out."""
        return {name: group for group in self.groups for name in group.nodes}

    @cached_property
    def net(self) -> nx.MultiDiGraph:
        """The graph as networkx sees it: node names, one edge per use, key = tensor name."""
        net = nx.MultiDiGraph()
        for node in self.nodes:
            net.add_node(node.name, node=node)
        for node in self.nodes:
            for name in node.inputs:
                if name in self.producer:
                    net.add_edge(self.producer[name].name, node.name, key=name)
        return net

    def with_nodes(self, nodes: Sequence[Node], tensors: Iterable[Tensor] = ()) -> Graph:
        """The same graph with other nodes; `tensors` are added, unused values dropped.

        Groups are dropped too: they were chosen for the nodes that were there.
        """
        known = {**self.tensors, **{t.name: t for t in tensors}}
        used = {name for n in nodes for name in (*n.inputs, *n.outputs) if name}
        kept = {
            k: t for k, t in known.items() if t.role != "value" or k in used or k in self.needed
        }
        return replace(self, nodes=tuple(nodes), tensors=kept, groups=())


class Builder:
    """Makes a graph node by node, inferring shapes as it goes.

    >>> b = Builder("tiny")
    >>> x = b.input("x", (1, 4))
    >>> y = b.emit("relu", [x])
    >>> b.build([y]).nodes[0].op
    'relu'
    """

    def __init__(self, name: str = "graph", base: Graph | None = None) -> None:
        self.name = base.name if base else name
        self.tensors: dict[str, Tensor] = dict(base.tensors) if base else {}
        self.nodes: list[Node] = list(base.nodes) if base else []
        self.data: dict[str, np.ndarray] = dict(base.data) if base else {}
        self.outputs: tuple[str, ...] = base.outputs if base else ()
        self.gradients: dict[str, str] = dict(base.gradients) if base else {}
        self.updates: dict[str, str] = dict(base.updates) if base else {}
        self.phase: Phase = "forward"
        self.origin = ""
        self._node_names = {n.name for n in self.nodes}
        self._constants: dict[tuple[str, tuple[int, ...]], list[str]] = {}
        for tensor in self.tensors.values():
            if tensor.role == "constant":
                self._constants.setdefault((tensor.dtype, tensor.shape), []).append(tensor.name)

    def fresh(self, stem: str) -> str:
        """A tensor name not used yet, `stem` itself when it is free."""
        return _free_name(stem, self.tensors)

    def declare(
        self,
        name: str,
        shape: Sequence[int],
        role: Role,
        dtype: str = "float",
        data: np.ndarray | None = None,
    ) -> str:
        """Add a tensor that no node writes; raises GraphError when the name is taken."""
        if name in self.tensors:
            raise GraphError(f"tensor '{name}' is declared twice")
        tensor = Tensor(name, tuple(int(d) for d in shape), dtype, role)
        self.tensors[name] = tensor
        if role == "constant":
            self._constants.setdefault((dtype, tensor.shape), []).append(name)
        if data is not None:
            self.data[name] = data
        return name

    def input(self, name: str, shape: Sequence[int], dtype: str = "float") -> str:
        """Declare a tensor that is fed each step."""
        return self.declare(name, shape, "input", dtype)

    def constant(self, value: Any, stem: str = "const", dtype: str = "float") -> str:
        """Declare a constant; an equal one made before is used again."""
        array = np.asarray(value)
        for name in self._constants.get((dtype, array.shape), ()):
            if name in self.tensors and np.array_equal(self.data[name], array, equal_nan=True):
                return name
        return self.declare(self.fresh(stem), array.shape, "constant", dtype, array)

    def emit(
        self,
        op: str,
        inputs: Sequence[str],
        *,
        name: str = "",
        outputs: Sequence[str] = (),
        **attrs: Any,
    ) -> str:
        """Append a node with one result (the first, if more) and give that tensor's name."""
        return self.emit_all(op, inputs, name=name, outputs=outputs, **attrs)[0]

    def emit_all(
        self,
        op: str,
        inputs: Sequence[str],
        *,
        name: str = "",
        outputs: Sequence[str] = (),
        **attrs: Any,
    ) -> tuple[str, ...]:
        """Append a node and give the names of all its results.

        Shapes and dtypes come from the op.  Raises GraphError when the op is unknown or does
        not accept these inputs.
        """
        from ccnn.passes.ops import op_named  # the ops build on this module

        node_name = _free_name(name or op, self._node_names)
        for i in inputs:
            if i and i not in self.tensors:
                raise GraphError(f"node '{node_name}' ({op}) reads '{i}', which does not exist")
        node = Node(node_name, op, tuple(inputs), (), freeze_attrs(attrs), self.origin, self.phase)
        results = op_named(op).infer(node, [self.tensors[i] if i else None for i in inputs])
        if outputs and len(outputs) != len(results):
            raise GraphError(
                f"node '{node_name}' ({op}) has {len(results)} results, {len(outputs)} were named"
            )
        names = []
        for k, (shape, dtype) in enumerate(results):
            stem = outputs[k] if outputs else (f"{node_name}.{k}" if k else node_name)
            names.append(self.declare(self.fresh(stem), shape, "value", dtype))
        self._node_names.add(node_name)
        self.nodes.append(replace(node, outputs=tuple(names)))
        return tuple(names)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Shape of a tensor made so far."""
        return self.tensors[tensor].shape

    def build(self, outputs: Sequence[str] | None = None) -> Graph:
        """Freeze what was built."""
        return Graph(
            self.name,
            tuple(self.nodes),
            dict(self.tensors),
            tuple(outputs if outputs is not None else self.outputs),
            dict(self.gradients),
            dict(self.updates),
            dict(self.data),
        )


def _free_name(stem: str, taken: Iterable[str]) -> str:
    names = taken if isinstance(taken, set | dict) else set(taken)
    name, k = stem, 1
    while name in names:
        name, k = f"{stem}.{k}", k + 1
    return name
