"""Graph of primitives + Mapping + Machine to Program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ccnn.compiler.codegen.bring import overhangs
from ccnn.compiler.codegen.convolution import Conv, ConvDw, ConvDx
from ccnn.compiler.codegen.copy import (
    write_back,
    write_concat,
    write_pad,
    write_slice,
    write_transpose,
)
from ccnn.compiler.codegen.emit import CodegenError, KernelWriter
from ccnn.compiler.codegen.gemm import Gemm
from ccnn.compiler.codegen.gemm_writer import write_gemm
from ccnn.compiler.codegen.group import write_group
from ccnn.compiler.codegen.hand_over import passages
from ccnn.compiler.codegen.layout import alias_roots, copy_nodes, machine_dtypes, place_tensors
from ccnn.compiler.codegen.matmul import MatMul
from ccnn.compiler.codegen.moments import write_moments
from ccnn.compiler.codegen.pair import pair_gemm
from ccnn.compiler.codegen.pair_writer import write_pair_kernel
from ccnn.compiler.codegen.plan import GroupPlan, plan_group
from ccnn.compiler.codegen.scope import Scope, alone
from ccnn.compiler.codegen.update import fused_updates, widths
from ccnn.compiler.codegen.vector import write_map, write_random, write_reduce
from ccnn.compiler.codegen.window import write_window, write_window_gradient
from ccnn.compiler.mapping import Mapping
from ccnn.passes.batch_axis import batch_axis
from ccnn.passes.graph import Graph, Node
from ccnn.passes.interleave_gradients import Pair, pair_of
from ccnn.targets.machine import Machine
from ccnn.targets.program import ZERO, Kernel, NodeRef, Program

GEMMS: dict[str, type[Gemm]] = {
    "conv": Conv,
    "conv_dx": ConvDx,
    "conv_dw": ConvDw,
    "matmul": MatMul,
}
"""Primitives that run on the array; of a convolution in groups, the mapping may say otherwise."""

KERNELS: dict[str, Callable[[Scope, KernelWriter, Node], None]] = {
    "map": write_map,
    "reduce": write_reduce,
    "moments": write_moments,
    "random": write_random,
    "expand": write_map,
    "window_sum": write_window,
    "window_max": write_window,
    "window_sum_grad": write_window_gradient,
    "window_max_grad": write_window_gradient,
    "transpose": write_transpose,
    "slice": write_slice,
    "pad": write_pad,
    "concat": write_concat,
    "write_back": write_back,
}
"""Primitives that run on the vector unit or the DMA engines."""

FREE = ("reshape",)
"""Primitives that are only another name for the same bytes."""

PRECISIONS = {
    "float64": ("f64", "f64"),
    "float32": ("f32", "f32"),
    "bfloat16": ("bf16", "f32"),
    "float16": ("f16", "f32"),
}
"""What the user calls a precision to (dtype of tensors, dtype of accumulation)."""


def make_context(graph: Graph, machine: Machine, precision: str) -> Scope:
    """What the kernel writers and the mapper need to know about this compilation."""
    dtype, accum = PRECISIONS[precision]
    scope = alone(graph, machine, machine_dtypes(graph, dtype, accum), accum)
    return replace(scope, updates=fused_updates(graph, FREE))


def gemm_of(context: Scope, node: Node, lanes: bool = False) -> Gemm:
    """The kernel of a node for the array, or for the `lanes`, ready to be mapped and written."""
    names = [i for i in node.inputs[:2]]
    kinds = {context.dtypes[n] for n in names}
    if len(kinds) > 1:
        raise CodegenError(
            f"'{node.name}' multiplies {' by '.join(sorted(kinds))}: both operands of "
            "the array must have one dtype; cast one with a map"
        )
    gemm = GEMMS[node.op](node, context.graph, dict(context.dtypes), context.accum, lanes=lanes)
    if gemm.out in context.updates:
        gemm.beside = widths(context, gemm.out)
    resident = {k for k, t in gemm.tensors.items() if t in context.regions}
    if resident:
        order = gemm.orders[0]
        whole = {n: (ZERO, gemm.levels[n].total) for n in order}
        around = "moving" in resident and overhangs(
            context, gemm.tensors["moving"], *gemm.box("moving", whole)
        )
        gemm.stay(frozenset(resident - ({"moving"} if around else set())), around)
    return gemm


def generate(context: Scope, mapping: Mapping, name: str = "") -> Program:
    """The program of a whole step.

    The graph holds only primitives.  Raises CodegenError when a node has no kernel, its
    smallest tile does not fit the machine, or a group cannot be executed as one block.
    """
    graph = context.graph
    root = alias_roots(graph)
    plans = plan_groups(context)
    nodes = [n for n in (*graph.nodes, *copy_nodes(graph, root)) if n.op not in FREE]
    numbers = {n.name: i for i, n in enumerate(nodes)}
    grouped = {n.name: plan for plan in plans for n in plan.nodes}
    pairs = {n.name: pair for pair in pairs_of(graph) for n in pair.nodes}
    together = tuple(pair.nodes for pair in pairs_of(graph))
    tensors, dram = place_tensors(graph, context.dtypes, root, plans, context.accum, together)
    if dram > context.machine.dram_bytes:
        raise CodegenError(
            f"the step needs {dram:,} bytes of DRAM and {context.machine.name} has "
            f"{context.machine.dram_bytes:,}; use a smaller --batch, a narrower --dtype or a "
            "machine with more (dram size_bytes)"
        )
    kernels, room = [], context.machine.gbuf_bytes
    for node in nodes:
        if node.attr("fused"):
            continue
        plan, pair = grouped.get(node.name), pairs.get(node.name)
        if pair is not None:
            if node is pair.nodes[0]:
                kernels.append(pair_kernel(context, mapping, pair, numbers))
        elif plan is None:
            kernels.append(_kernel(context, mapping, node, numbers[node.name], room))
        elif node is next(n for n in plan.nodes if n.op not in FREE):
            plan = replace(plan, budget=mapping.rooms.get(plan.name, plan.budget))
            kernels.append(group_kernel(context, mapping, plan, numbers))
            left = [h.region.address for h in plan.passage.left]
            room = min(left, default=context.machine.gbuf_bytes)
    dtype = next(d for d, a in PRECISIONS.values() if _matches(context, d, a))
    return Program(
        name or graph.name, context.machine.name, dtype, context.accum, dram, tensors,
        tuple(NodeRef(n.name, n.op, n.origin, n.phase) for n in nodes), tuple(kernels),
    )  # fmt: skip


def plan_groups(context: Scope) -> list[GroupPlan]:
    """How each group of the graph uses the buffer."""
    graph = context.graph
    groups = [group for group in graph.groups if not group.interleaved]
    if not groups:
        return []
    axis, root = batch_axis(graph), alias_roots(graph)
    room = context.machine.gbuf_bytes
    handed = passages(graph, groups, axis, root, context.dtypes, room)
    return [
        plan_group(context, group, axis, root, passage)
        for group, passage in zip(groups, handed, strict=True)
    ]


def pairs_of(graph: Graph) -> list[Pair]:
    """The layers whose gradients the array takes turns with."""
    return [pair_of(graph, group) for group in graph.groups if group.interleaved]


def _matches(context: Scope, dtype: str, accum: str) -> bool:
    used = {context.dtypes[t.name] for t in context.graph.tensors.values() if t.dtype == "float"}
    return accum == context.accum and (not used or used == {dtype})


def write_node(scope: Scope, kw: KernelWriter, mapping: Mapping, node: Node, key: str) -> None:
    """Append the code of one node to a kernel; `key` names its tiling."""
    if node.op in GEMMS:
        tiling = mapping.tilings[key]
        write_gemm(gemm_of(scope, node, tiling.on_lanes), kw, scope, tiling, mapping.cuts)
    elif node.op in KERNELS:
        KERNELS[node.op](scope, kw, node)
    else:
        raise CodegenError(f"'{node.name}': no kernel for the op '{node.op}'; run `expand` first")


def _kernel(context: Scope, mapping: Mapping, node: Node, number: int, room: int) -> Kernel:
    """The kernel of a node that is in no group, in so many bytes of the buffer."""
    kw = KernelWriter(node.name, number, room)
    context = replace(context, budget=min(context.budget, room))
    write_node(context, kw, mapping, node, node.name)
    return kw.finish()


def pair_kernel(context: Scope, mapping: Mapping, pair: Pair, numbers: dict[str, int]) -> Kernel:
    """The kernel of both gradients of a layer, which the array interleaves."""
    dx, dw = numbers[pair.dx.name], numbers[pair.dw.name]
    kw = KernelWriter(pair.nodes[0].name, dx, context.machine.gbuf_bytes)
    tiling = mapping.tilings[pair.dx.name]
    write_pair_kernel(pair_gemm(context, pair), kw, context, tiling, (dx, dw))
    return kw.finish()


def group_kernel(
    context: Scope, mapping: Mapping, plan: GroupPlan, numbers: dict[str, int]
) -> Kernel:
    """The kernel of a group; raises CodegenError when its buffers do not fit together."""

    def write(scope: Scope, kw: KernelWriter, node: Node, key: str) -> None:
        write_node(scope, kw, mapping, node, key)

    return write_group(context, plan, numbers, write, plan.roots)
