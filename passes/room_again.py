"""How much of one sample lives at once in the backward pass, and what of it was made anew.

Copies that a long chain of layers makes anew are all needed by the gradients that follow, the
first of them longest.  Where they do not fit in the buffer together, one of them that is small had
better be stored: the chain then begins behind it, and what lies before is made later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ccnn.passes.batch_axis import batch_axis
from ccnn.passes.graph import Graph, Node
from ccnn.passes.group_plan import Look, Tables, Window
from ccnn.passes.steps import ElementBytes, Steps, make_steps


@dataclass(frozen=True)
class Crowd:
    """What of one sample lives at once at each kernel of a backward pass, as if it were one group:
    all that is read there, but for what is read just once and not made there."""

    steps: Steps
    look: Look

    @cached_property
    def live(self) -> dict[str, float]:
        """Bytes at each kernel, by the name of its node."""
        live = self.look.live(self._resident)
        return {n.name: float(b) for n, b in zip(self._nodes, live, strict=True)}

    def members(self, node: str) -> dict[str, float]:
        """Bytes of each tensor that lives at a kernel and was made before it, in this pass."""
        at = self.look.window.low + [n.name for n in self._nodes].index(node)
        here = self._resident & (self.look.first < at) & (self.look.last >= at) & self.look.written
        tables, touched = self.look.window.tables, self.look.window.touched
        return {tables.names[s]: float(tables.room[s]) for s in touched[here].tolist()}

    @cached_property
    def _resident(self) -> np.ndarray:
        return self.look.can_reside()

    @property
    def _nodes(self) -> tuple[Node, ...]:
        return self.steps.nodes[self.look.window.low :]


def backward_crowd(graph: Graph, sizes: ElementBytes) -> Crowd:
    """The crowd of a step of primitives."""
    steps = make_steps(graph, batch_axis(graph), sizes)
    window = Window(Tables(steps, in_place=True), steps.backward)
    window.grow(len(steps.nodes))
    return Crowd(steps, window.look())


_TRIES = 3
"""Tensors that are tried where too much lives at once, the smallest first."""

_HOPELESS = 6
"""Nodes at which nothing helped, after which no more are looked at."""


def with_room(
    made: Callable[[frozenset[str]], Graph], graph: Graph, room: float, sizes: ElementBytes
) -> Graph:
    """The graph with some tensors stored instead of made anew, where too much lived at once.

    made: the graph with such tensors stored; graph: that of none; room: bytes of one sample.

    Tensors are stored where what lives at once then fits, and each takes off more than it takes
    itself, which is what it would cost to bring others to DRAM and back from there.
    """
    stored: frozenset[str] = frozenset()
    crowd, hopeless = backward_crowd(graph, sizes), set[str]()
    while True:
        live = {n: b for n, b in crowd.live.items() if b > room and "/again" not in n}
        live = {n: b for n, b in live.items() if n not in hopeless}
        if not live or len(hopeless) > _HOPELESS:
            return graph
        node = max(live, key=lambda n: live[n])
        more, other, then = stored, graph, crowd
        while then.live[node] > room:
            step = _one_stored(made, more, then, node, sizes)
            if step is None:
                hopeless.add(node)
                break
            more, other, then = step
        else:
            stored, graph, crowd = more, other, then


def _one_stored(
    made: Callable[[frozenset[str]], Graph],
    stored: frozenset[str],
    crowd: Crowd,
    node: str,
    sizes: ElementBytes,
) -> tuple[frozenset[str], Graph, Crowd] | None:
    """One more tensor stored, so that more is gone at a node than it takes; None: there is none."""
    copies = {n: b for n, b in crowd.members(node).items() if ".again" in n}
    for name in sorted(copies, key=lambda n: copies[n])[:_TRIES]:
        more = stored | {name.rpartition(".again")[0]}
        graph = made(more)
        then = backward_crowd(graph, sizes)
        if crowd.live[node] - then.live[node] > copies[name]:
            return more, graph, then
    return None
