"""`ccnn explain MODEL NODE`: how a layer was lowered, tiled and placed, what bounds it, and what
would change that.

Nothing is guessed: each kernel of the layer is executed alone, again on machines that differ in
one parameter (tiles chosen anew where the parameter decides them), and again with the best
tilings that the mapper passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

from ccnn.compiler.codegen import GEMMS, CodegenError, gemm_of, make_context, write_node
from ccnn.compiler.codegen.emit import KernelWriter
from ccnn.compiler.codegen.lanes import may_use_lanes
from ccnn.compiler.cut import Cut, Triple
from ccnn.compiler.driver import Compilation
from ccnn.compiler.explain_block import Block, PairBlock, next_tilings
from ccnn.compiler.failure import ExitCode, Failure
from ccnn.compiler.mapper import map_node
from ccnn.compiler.mapper.cuts import choose_cuts, cuts_by_rule, usable_flows
from ccnn.compiler.mapper.rule import choose_tiling
from ccnn.compiler.mapping import Mapping, MappingError, Tiling
from ccnn.compiler.progress import Progress
from ccnn.compiler.report.detail import KernelDetail, kernel_details
from ccnn.passes.graph import Node
from ccnn.targets.machine import Machine
from ccnn.targets.program import Kernel, Program
from ccnn.targets.simulator import Trace, simulate

RUNNERS = 4
"""Tilings beside the chosen one that are executed to find the runner-up."""

NOTICEABLE = 0.02
"""The part of a kernel's cycles that a change must save to count as lifting a bound."""


@dataclass(frozen=True)
class Variation:
    """A change of the machine: what it is called, what it relieves, and whether tiles follow."""

    name: str
    relieves: str
    changes: tuple[tuple[str, float], ...]
    """(field of Machine, factor)."""
    remap: bool = False

    def apply(self, machine: Machine) -> Machine:
        """The changed machine."""
        new: dict[str, Any] = {}
        for field, factor in self.changes:
            old = getattr(machine, field)
            new[field] = float(old * factor) if isinstance(old, float) else int(old * factor)
        return machine.resized(**new)


VARIATIONS = (
    Variation("DRAM bandwidth x 2", "DRAM bandwidth", (("dram_bandwidth_gib_s", 2),)),
    Variation("DRAM latency 0", "DRAM latency", (("dram_latency_cycles", 0),)),
    Variation("vector lanes x 2", "vector unit", (("lanes", 2),)),
    Variation("vector start-up 0", "vector start-up", (("vector_startup_cycles", 0),)),
    Variation("array x 2 in rows and columns", "array", (("rows", 2), ("cols", 2)), True),
    Variation("GBUF x 2", "GBUF size", (("gbuf_bytes", 2),), True),
    Variation("accumulators x 2", "accumulator size", (("acc_rows", 2),), True),
)


@dataclass(frozen=True)
class WhatIf:
    """A kernel on a changed machine; `cycles` is None when it could not be compiled for it."""

    name: str
    relieves: str
    cycles: int | None


@dataclass(frozen=True)
class RunnerUp:
    """A tiling that was not chosen, and what the kernel takes with it."""

    tiling: str
    dram_bytes: int
    cycles: int


@dataclass(frozen=True)
class KernelStory:
    """One kernel of the layer: what it is made from, what it took, and why."""

    node: str
    op: str
    phase: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    shared_with: tuple[str, ...]
    """Other nodes that the same kernel serves."""
    own_cycles: int
    """By how much this node alone moved the kernel's end."""
    layer_cycles: int
    """The same for all nodes of the layer that the kernel serves."""
    detail: KernelDetail
    tiling: Tiling | None
    runner_up: RunnerUp | None
    elsewhere: RunnerUp | None
    """The kernel with a convolution in groups on the other unit: array or lanes."""
    what_if: tuple[WhatIf, ...]

    @property
    def bound_by(self) -> str:
        """What lifting saves most; 'its own order' when no single change saves anything."""
        cycles = self.detail.cycles
        best = min(
            (w for w in self.what_if if w.cycles is not None),
            key=lambda w: w.cycles or 0,
            default=None,
        )
        if best is None or best.cycles is None or best.cycles > (1 - NOTICEABLE) * cycles:
            return "its own order: no single change of the machine saves 2 %"
        return f"{best.relieves}: {best.name} saves {100 * (1 - best.cycles / cycles):.1f} %"


@dataclass(frozen=True)
class Explanation:
    """Everything about one ONNX node (or graph node) of a compiled step."""

    name: str
    machine: str
    gbuf_bytes: int
    step_cycles: int
    kernels: tuple[KernelStory, ...]
    free: tuple[str, ...]
    """Graph nodes that cost nothing: another name for the same bytes."""

    @property
    def cycles(self) -> int:
        """Cycles of all its nodes, by how much they moved the ends of their kernels."""
        return sum({k.detail.start: k.layer_cycles for k in self.kernels}.values())


def find_nodes(c: Compilation, name: str) -> list[Node]:
    """The graph nodes of an ONNX node, or the one called so; Failure says what is close."""
    found = [n for n in c.lowered.nodes if n.origin == name]
    found = found or [n for n in c.lowered.nodes if n.name == name]
    if found:
        return found
    origins = list(dict.fromkeys(n.origin for n in c.lowered.nodes if n.origin))
    inside = [o for o in origins if name.lower() in o.lower()]
    close = (inside or get_close_matches(name, origins, 5))[:5]
    hint = f"did you mean {', '.join(close)}?" if close else f"it has {', '.join(origins[:8])} ..."
    raise Failure(
        ExitCode.USAGE,
        f"{c.program.name} has no node '{name}'; {hint} `ccnn report DIR -v` lists them all",
    )


def explain_node(
    c: Compilation, name: str, trace: Trace | None = None, progress: Progress | None = None
) -> Explanation:
    """The story of every kernel that serves a node. Raises Failure when there is no such node."""
    nodes = find_nodes(c, name)
    trace = trace or simulate(c.program, c.machine)
    wanted = {n.name for n in nodes}
    served = [
        number
        for number, kernel in enumerate(c.program.kernels)
        if wanted & {c.program.nodes[i].name for i in _served(kernel)}
    ]
    some = replace(c.program, kernels=tuple(c.program.kernels[n] for n in served))
    placed = tuple(trace.kernels[n] for n in served)
    details = kernel_details(some, c.machine, placed, max_events=0)
    stories: list[KernelStory] = []
    parts = len(VARIATIONS) + 1

    def tell(kernel: int, part: int) -> None:
        if progress:
            progress("executing its kernels", kernel * parts + part, len(served) * parts)

    for done, (number, detail) in enumerate(zip(served, details, strict=True)):
        kernel = c.program.kernels[number]
        stories += _stories(c, kernel, number, detail, wanted, partial(tell, done))
    used = {s.node for s in stories} | {n for s in stories for n in s.shared_with}
    free = tuple(n.name for n in nodes if n.name not in used)
    return Explanation(
        name, c.machine.name, c.machine.gbuf_bytes, trace.cycles, tuple(stories), free
    )


def _served(kernel: Kernel) -> list[int]:
    from ccnn.compiler.report.detail import instructions

    return list(dict.fromkeys(i.node for i in instructions(kernel.body)))


def _stories(
    c: Compilation,
    kernel: Kernel,
    number: int,
    detail: KernelDetail,
    wanted: set[str],
    tell: Callable[[int], None],
) -> list[KernelStory]:
    """A story for each GEMM of the layer in a kernel; of a kernel without, for its longest node.

    `tell` is called with how many of the variations are done.
    """
    refs = [c.program.nodes[i] for i in detail.nodes]
    cycles = {c.program.nodes[layer.node].name: layer.cycles for layer in detail.layers}
    own = [r for r in refs if r.name in wanted]
    told = [r for r in own if r.name in c.mapping.tilings]
    told = told or [max(own, key=lambda r: cycles.get(r.name, 0))]
    nodes = {n.name: n for n in c.lowered.nodes}
    alone = nodes.get(refs[0].name) if len(refs) == 1 else None
    what_if: list[WhatIf] = []
    for done, variation in enumerate(VARIATIONS):
        tell(done)
        what_if.append(_what_if(c, kernel, alone, number, variation))
    tell(len(VARIATIONS))
    stories = []
    for ref in told:
        node, tiling = nodes.get(ref.name), c.mapping.tilings.get(ref.name)
        runner = _runner_up(c, kernel, node, number, tiling) if node and tiling else None
        other = _elsewhere(c, kernel, node, number, tiling) if node and tiling else None
        stories.append(
            KernelStory(
                ref.name,
                ref.op,
                ref.phase,
                _described(c, node.inputs if node else ()),
                _described(c, node.outputs if node else ()),
                tuple(r.name for r in refs if r.name != ref.name),
                cycles.get(ref.name, 0),
                sum(cycles.get(r.name, 0) for r in own),
                detail,
                tiling,
                runner,
                other,
                tuple(what_if),
            )
        )
    return stories


def _described(c: Compilation, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        f"{n}[{','.join(map(str, c.lowered[n].shape))}]" for n in names if n in c.lowered.tensors
    )


def _what_if(
    c: Compilation, kernel: Kernel, node: Node | None, number: int, variation: Variation
) -> WhatIf:
    """One kernel on a changed machine, compiled anew where that decides its tiles; `node` is the
    only one of the kernel, or None for a group, which keeps its nodes and its sub-batch."""
    machine = variation.apply(c.machine)
    cycles: int | None = None
    try:
        if not variation.remap:
            cycles = _cycles(c.program, kernel, machine)
        elif node is None:
            block = Block.of(c, kernel, machine)
            if block:
                cycles = _cycles(c.program, block.write(block.mapped(c.options.mapper)), machine)
        elif node.op in GEMMS:
            cycles = _cycles(c.program, _written(c, node, number, machine), machine)
    except (MappingError, CodegenError):
        cycles = None
    return WhatIf(variation.name, variation.relieves, cycles)


def _written(
    c: Compilation, node: Node, number: int, machine: Machine, tiling: Tiling | None = None
) -> Kernel:
    """The kernel of a node for a machine, with the tiling given or the best one for it."""
    context = make_context(c.lowered, machine, c.options.dtype)
    if tiling is None:
        mapping = map_node(context, node, c.options.mapper, c.options.objective)
    else:
        gemm = gemm_of(context, node, tiling.on_lanes)
        cuts: dict[tuple[Triple, str], Cut] = {}
        if c.options.mapper != "exact":
            cuts |= cuts_by_rule(gemm, tiling, machine)
        else:
            flows = usable_flows(gemm, tiling, machine, grouped=False)
            tiling = choose_cuts(gemm, tiling, machine, cuts, flows, None, c.options.objective)
        mapping = Mapping(machine.name, {node.name: tiling}, {}, cuts)
    writer = KernelWriter(node.name, number, machine.gbuf_bytes)
    write_node(context, writer, mapping, node, node.name)
    return writer.finish()


def _cycles(program: Program, kernel: Kernel, machine: Machine) -> int:
    return simulate(replace(program, kernels=(kernel,)), machine).cycles


def _runner_up(
    c: Compilation, kernel: Kernel, node: Node, number: int, chosen: Tiling
) -> RunnerUp | None:
    """The best of the tilings next in price, by executing the kernel with each of them."""
    block = Block.of(c, kernel, c.machine)
    if block:
        written = block.others(c.mapping, node, chosen, RUNNERS)
    else:
        context = make_context(c.lowered, c.machine, c.options.dtype)
        gemm = gemm_of(context, node, chosen.on_lanes)
        tilings = next_tilings(gemm, c.machine, chosen, RUNNERS)
        written = ((t, partial(_written, c, node, number, c.machine, t)) for t in tilings)
    found = [ran for offer in written if (ran := _run(c, *offer))]
    return min(found, key=lambda r: (r.cycles, r.dram_bytes), default=None)


def _run(c: Compilation, tiling: Tiling, write: Callable[[], Kernel]) -> RunnerUp | None:
    """A kernel with a tiling, executed; None when it does not fit."""
    try:
        trace = simulate(replace(c.program, kernels=(write(),)), c.machine)
    except (CodegenError, MappingError):
        return None
    return RunnerUp(str(tiling).split(" dram ")[0], trace.dram_bytes, trace.cycles)


def _elsewhere(
    c: Compilation, kernel: Kernel, node: Node, number: int, chosen: Tiling
) -> RunnerUp | None:
    """The kernel with a node of it on the other unit; None where only the array can run it."""
    block = Block.of(c, kernel, c.machine)
    if not may_use_lanes(node) or isinstance(block, PairBlock):
        return None
    try:
        if block:
            return _run(c, *block.elsewhere(c.mapping, node, chosen))
        context = make_context(c.lowered, c.machine, c.options.dtype)
        tiling = choose_tiling(gemm_of(context, node, not chosen.on_lanes), c.machine)
    except MappingError:
        return None
    return _run(c, tiling, partial(_written, c, node, number, c.machine, tiling))


def explanation_json(e: Explanation) -> dict[str, Any]:
    """An explanation as plain values for JSON."""
    kernels: list[dict[str, Any]] = []
    for story in e.kernels:
        plain = asdict(story)
        plain["detail"].pop("events")
        kernels.append(
            {**plain, "bound_by": story.bound_by, "tiling": str(story.tiling or "") or None}
        )
    return {
        "schema": "ccnn-explain/1",
        "node": e.name,
        "machine": e.machine,
        "cycles": e.cycles,
        "step_cycles": e.step_cycles,
        "free_nodes": list(e.free),
        "kernels": kernels,
    }
