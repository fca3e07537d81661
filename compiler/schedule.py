"""From a step in primitives to groups and tiles, as the options of a compilation ask for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ccnn.compiler.codegen import PRECISIONS, make_context
from ccnn.compiler.codegen.plan import TENTHS_FOR_A_NODE
from ccnn.compiler.codegen.scope import Scope
from ccnn.compiler.interleave import keep_what_pays
from ccnn.compiler.mapper import map_graph
from ccnn.compiler.mapping import GroupDoesNotFit, Mapping
from ccnn.passes.defer_norms import DeferNorms
from ccnn.passes.early_masks import EarlyMasks
from ccnn.passes.fuse_layers import FuseLayers
from ccnn.passes.fuse_updates import FuseUpdates
from ccnn.passes.graph import Graph
from ccnn.passes.interleave_gradients import InterleaveGradients
from ccnn.passes.pipeline import Pass, run_pipeline
from ccnn.passes.recompute import Recompute
from ccnn.passes.serialize_minibatch import SerializeMinibatch
from ccnn.passes.split_concats import SplitConcats
from ccnn.passes.steps import ElementBytes
from ccnn.passes.tile_traffic import TileRoom
from ccnn.targets.machine import Machine
from ccnn.targets.program import DTYPE_BYTES

if TYPE_CHECKING:
    from ccnn.compiler.driver import CompileOptions

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how much of it is done, and how much there is."""


def element_bytes(o: CompileOptions) -> ElementBytes:
    """What the elements of a program take, as passes count them."""
    dtype, accum = (DTYPE_BYTES[d] for d in PRECISIONS[o.dtype])
    return ElementBytes(element=dtype, accum=accum, partial=accum, margins=True)


def prepared(
    graph: Graph, machine: Machine, o: CompileOptions, watch: Callable[[str, Graph], None]
) -> Graph:
    """The primitives as sub-batches suit them, and with what is made anew in the backward pass, if
    that was asked for; those of the conventional schedule as they are.

    `watch` sees each graph that differs from the one before.
    """
    passes: list[Pass] = [] if o.serialize == "none" else [SplitConcats(), DeferNorms()]
    if o.serialize not in ("none", "fused"):
        passes.append(EarlyMasks())
    if o.recompute not in ("none", "auto"):
        grouped = o.serialize not in ("none", "fused")
        room = machine.gbuf_bytes * (1 - _FOR_TILES[0]) if grouped else 0.0
        sizes = element_bytes(o)
        passes.append(
            Recompute(
                recompute=o.recompute,
                macs_per_byte=o.macs_per_byte,
                room_bytes=room,
                bytes_per=sizes,
            )
        )
    for each in passes:
        before, graph = graph, run_pipeline(graph, (each,))
        if graph is not before:
            watch(each.name, graph)
    return graph


_FOR_TILES = (0.15, 0.25, 0.4, 0.6)
"""Shares of the buffer that groups leave to the tiles that stream through it, tried in turn."""


def grouped(graph: Graph, machine: Machine, o: CompileOptions, share: float) -> Graph:
    """The graph with its groups, which leave this share of the buffer to tiles."""
    if o.serialize in ("none", "auto"):
        return graph
    room: Any = {
        "buffer_bytes": machine.gbuf_bytes,
        "reserved_bytes": int(machine.gbuf_bytes * share),
        "merge_moments": True,
        "in_place": True,
        "bytes_per": element_bytes(o),
    }
    tiles = TileRoom(TENTHS_FOR_A_NODE / 10, machine.cols, element_bytes(o).accum)
    grouping = (
        FuseLayers(**room)
        if o.serialize == "fused"
        else SerializeMinibatch(
            mode=o.serialize,
            rows=o.rows == "auto",
            tiles=tiles,
            idle_per_byte=_idle_per_byte(machine, o) if o.halves else 0.0,
            hand_over=o.interleave == "off" and not o.halves,
            **room,
        )
    )
    # layers that may still be paired have to stay as they are
    updates = FuseUpdates(gradients=o.gradients, alone=o.interleave == "off")
    return run_pipeline(graph, (grouping, updates))


def _idle_per_byte(machine: Machine, o: CompileOptions) -> float:
    """Bytes that DRAM moves while the vector unit makes one byte of a tensor."""
    return _PASSES * machine.bytes_per_cycle / (machine.lanes * element_bytes(o).element)


_PASSES = 2.0
"""How often the vector unit passes over what it makes, about: moments are read, maps compute."""


def _halved(graph: Graph) -> Graph:
    """The graph with its forward groups in halves; backward, weight gradients give the array enough
    to do meanwhile, where operands have been fetched early."""
    backward = {n.name for n in graph.nodes if n.phase == "backward"}
    halves = [backward.isdisjoint(g.nodes) for g in graph.groups]
    groups = (replace(g, halves=h, ahead=True) for g, h in zip(graph.groups, halves, strict=True))
    return replace(graph, groups=tuple(groups))


def grouped_and_mapped(
    graph: Graph, machine: Machine, o: CompileOptions, tell: Progress, known: Graph | None = None
) -> tuple[Scope, Mapping]:
    """Group the nodes and map all GEMMs; `known` is what `grouped` makes of them for `o.tiles`.

    Where a group does not fit, all are made again with more room for tiles; one that never fits is
    dissolved into kernels of its nodes.
    """

    def attempt(candidate: Graph, pinned: Mapping | None = o.pinned) -> tuple[Scope, Mapping]:
        context = make_context(candidate, machine, o.dtype)
        mapping = map_graph(
            context,
            lambda done, total: tell("map", done, total),
            o.mapper,
            pinned,
            o.objective,
        )
        return context, mapping

    found = graph
    shares = _FOR_TILES if o.tiles is None else (o.tiles,)
    for share in shares if o.serialize != "none" else ():
        tell("group", 0, 1)
        found = known or grouped(graph, machine, o, share)
        found = _halved(found) if o.halves else found
        with suppress(GroupDoesNotFit):
            mapped = attempt(found)
            if o.interleave == "off":
                return mapped
            break
    # a mapping at hand names the GEMMs of the pairs that were kept, not of all that are tried
    return _settled(_interleaved(found, machine, o, partial(attempt, pinned=None)), attempt)


Attempt = Callable[[Graph], tuple[Scope, Mapping]]
"""Maps a graph; raises GroupDoesNotFit."""


def _settled(found: Graph, attempt: Attempt) -> tuple[Scope, Mapping]:
    """The graph mapped, without the groups that never fit."""
    while True:
        try:
            return attempt(found)
        except GroupDoesNotFit as error:
            kept = tuple(g for g in found.groups if error.group not in g.nodes)
            found = replace(found, groups=kept)


def _interleaved(graph: Graph, machine: Machine, o: CompileOptions, attempt: Attempt) -> Graph:
    """The graph with the gradients of layers paired, as the options ask."""
    if o.interleave == "off":
        return graph
    room = machine.gbuf_bytes
    pairs = InterleaveGradients(
        buffer_bytes=room, reserved_bytes=room // 2, bytes_per=element_bytes(o)
    )
    by_element = replace(pairs, form="element")
    if o.interleave == "auto":
        forms = (pairs, by_element) if machine.turning_mode else (pairs,)
        found = [run_pipeline(graph, (form,)) for form in forms]
        return keep_what_pays(graph, found, lambda g: _settled(g, attempt), o.objective)
    return run_pipeline(graph, (by_element if o.interleave == "element" else pairs,))
