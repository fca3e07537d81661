"""Groups whose iterations go in two halves, so that array and vector unit work at once.

In a chain of layers the array waits for the norm behind each convolution, and the vector unit for
the next convolution.  With the samples of an iteration in two halves, each *stage* (array nodes, or
the vector work behind them) is done for one half and then for the other: while the vector unit is
at one half, the array is at the other.  What the array made of both is then stored before what the
vector unit makes, which may write over it.  A resident tensor has a part of its region for each
half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ccnn.compiler.codegen.bands import Turn
from ccnn.compiler.codegen.packing import Rectangle
from ccnn.passes.batch_axis import BatchAxis
from ccnn.passes.graph import Node
from ccnn.passes.steps import ARRAY_OPS


def may_halve(sizes: Sequence[int], turns: Sequence[Turn], axis: BatchAxis) -> bool:
    """True when whole images are looped over and every iteration has samples for both halves."""
    return len(sizes) > 1 and len(turns) == 1 and min(sizes) >= 2 * axis.grain


def half_of(samples: int, grain: int) -> int:
    """Samples of the first half."""
    return -(-samples // (2 * grain)) * grain


def stages_of(nodes: Sequence[Node], halves: bool) -> list[list[int]]:
    """Runs of array nodes and runs of what is done behind them; all is one without halves."""
    if not halves:
        return [list(range(len(nodes)))]
    stages: list[list[int]] = [[]]
    for place, node in enumerate(nodes):
        on_array = node.op in ARRAY_OPS
        if any((nodes[p].op in ARRAY_OPS) is not on_array for p in stages[-1]):
            stages.append([])
        stages[-1].append(place)
    return stages


def stage_ends(nodes: Sequence[Node], halves: bool) -> dict[int, int]:
    """Place of a node to one past the last of its stage; nothing without halves."""
    stages = stages_of(nodes, halves) if halves else []
    return {place: stage[-1] + 1 for stage in stages for place in stage}


def to_ends(rectangles: Sequence[Rectangle], ends: Mapping[int, int]) -> tuple[Rectangle, ...]:
    """Regions that live until the second half has been through the stage as well."""
    return tuple(replace(r, end=ends.get(r.end - 1, r.end)) for r in rectangles)
