"""Bands of rows: what the nodes of a group see of their tensors while one band runs.

A node works on the rows its band needs as on a smaller image: the shapes in its scope have only
those rows, its padding is only what lies outside the whole image, and rows of a region above and
below the ones it sees are skipped like a margin.  Whole images are one band of all their rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ccnn.compiler.codegen.emit import CodegenError
from ccnn.compiler.codegen.scope import Margin, Scope
from ccnn.passes.graph import Graph, Group, Node, Tensor
from ccnn.passes.row_bands import Part, RowBands, banded, row_bands
from ccnn.passes.row_work import AXIS, NoBands, Rows
from ccnn.targets.program import ZERO, Affine

_NONE: Margin = ((0, 0), (0, 0))


@dataclass(frozen=True)
class Turn:
    """Bands one after the other that differ only in where they start."""

    number: int = 0
    count: int = 1
    parts: Mapping[str, Part] = field(default_factory=dict)
    """Node name to what the first of the bands does there; empty for whole images."""
    needs: Mapping[str, Rows] = field(default_factory=dict)
    """The rows of each tensor that are there in the first of the bands."""
    owns: Mapping[str, Rows] = field(default_factory=dict)
    """Those that no other band stores."""
    carried: Mapping[str, Rows] = field(default_factory=dict)
    """Those that the band before made, where it is not made again."""
    ahead: Mapping[str, Rows] = field(default_factory=dict)
    """Those that the next band takes over so."""
    steps: Mapping[str, int] = field(default_factory=dict)
    """Rows of each tensor from one band to the next."""
    margins: Mapping[str, Margin] = field(default_factory=dict)
    """Regions that keep zeros around each plane, for the convolutions that read beyond it."""

    def node(self, node: Node) -> Node:
        """The node as it runs on its rows."""
        return self.parts[node.name].node if self.parts else node

    def shows(self, scope: Scope, views: Mapping[str, Rows], index: Affine = ZERO) -> Scope:
        """A scope of whole images with only these rows of its tensors; `index` counts the bands
        of this turn."""
        if not views:
            return scope
        tensors, margins, tops = dict(scope.graph.tensors), dict(scope.margins), {}
        heights = {name: tensors[name].shape[AXIS] for name in views}
        for name, (low, high) in views.items():
            tensors[name] = banded(tensors[name], (low, high))
            tops[name] = index * self.steps[name] + low
            if name in scope.regions:
                first, last = self.needs[name]
                (above, below), columns = self.margins.get(name, _NONE)
                margins[name] = (above + low - first, below + last - high), columns
        graph = replace(scope.graph, tensors=tensors)
        return replace(scope, graph=graph, margins=margins, tops=tops, heights=heights)

    def at(self, scope: Scope, node: Node, index: Affine = ZERO) -> Scope:
        """The scope of a node."""
        return self.shows(scope, self.parts[node.name].views, index) if self.parts else scope

    def above(self, tensor: str) -> int:
        """Rows of a tensor that are carried into the band."""
        low, high = self.carried.get(tensor, (0, 0))
        return high - low

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """The shape of what is there of a tensor."""
        rows = self.needs.get(tensor.name)
        return banded(tensor, rows).shape if rows else tensor.shape


def turns_of(bands: RowBands | None) -> tuple[Turn, ...]:
    """The turns of an image, without margins."""
    if bands is None:
        return (Turn(),)
    made = []
    for number, stripe in enumerate(bands.stripes):
        needs = bands.needs(stripe.band)
        made.append(
            Turn(
                number,
                stripe.count,
                bands.parts(stripe.band),
                needs,
                {t: bands.publishes(t, stripe.band) for t in needs},
                bands.carries(stripe.band),
                bands.carries(stripe.band + 1) if stripe.band + 1 < bands.count else {},
                {t: bands.step(t) for t in needs},
            )
        )
    return tuple(made)


def bands_of(graph: Graph, group: Group, nodes: Sequence[Node]) -> RowBands | None:
    """How the images of a group are cut into rows, if they are."""
    if not group.rows:
        return None
    try:
        run = [n for n in nodes if not n.attr("fused")]
        return row_bands(graph, run, group.rows, group.carried)
    except NoBands as why:
        raise CodegenError(f"the group of '{nodes[0].name}' cannot run on rows: {why}") from why


def check_bands(nodes: Sequence[Node], turns: Sequence[Turn], names: Mapping[str, str]) -> None:
    """What two bands need both must stay in the buffer, for only one of them may store it."""
    for turn in turns:
        for node in nodes:
            for t in node.outputs:
                if t not in names and t in turn.needs and turn.needs[t] != turn.owns[t]:
                    raise CodegenError(
                        f"bands share rows of '{t}': it must be resident in its group"
                    )
