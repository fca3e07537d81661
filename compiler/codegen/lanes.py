"""Grouped convolutions on the vector unit: each product of a tile is one reduction over the lanes.

Of a group with few channels the array holds little: of a depthwise convolution one column of R S
weights.  The lanes read the same operands by the same address patterns.  With a, b and y as gemm.py
lays them over their tiles, and g counting the groups that a tile holds,

    y[g, m, n] (+)= sum over k of a[g, m, k] * b[g, k, n]

is one VRED, a lane slot for each multiply-accumulate.  Sums are kept in the accumulation type; the
result is rounded once, with the bias in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ccnn.compiler.codegen.emit import KernelWriter
from ccnn.compiler.codegen.gemm import Gemm, Product, plain
from ccnn.compiler.codegen.nest import Position
from ccnn.compiler.codegen.place import Held
from ccnn.compiler.codegen.waves import Block
from ccnn.passes.graph import Node
from ccnn.targets.program import Affine, Dim, Extent, Map, Reduce, View, var

_GROUP = "group"
"""Stands for the number of the group in a product's offsets; becomes a dim."""


def may_use_lanes(node: Node) -> bool:
    """True for a convolution in groups, or a gradient of one."""
    return node.op in ("conv", "conv_dx", "conv_dw") and node.attr("group", 1) > 1


def write_on_lanes(
    kw: KernelWriter,
    gemm: Gemm,
    position: Position,
    held: tuple[Held, Held, Held],
    accumulate: Affine,
    bias: Held | None,
) -> None:
    """Write the products of a tile; held are moving, stationary and result.

    They add to what the result holds when `accumulate` is above 0; with a `bias`, to that.
    """
    groups = gemm.repeats(position)
    for product in gemm.products(position, held, var(_GROUP)):
        _write(kw, product, groups, accumulate, bias)


def _write(
    kw: KernelWriter, product: Product, groups: int, accumulate: Affine, bias: Held | None
) -> None:
    moving, stationary, result, shape, column = product
    m, n, k = result.rows, result.cols, moving.cols
    target = _view(result, groups, result.rows, result.cols, _still(k))
    if bias is not None:
        added = bias.block((), (), column)
        spread = _view(added, groups, _still(m), plain((shape[1], 1)), ())
        (into, spread), _ = _without_ones((_view(result, groups, m, n, ()), spread), range(0))
        kw.emit(Map(kw.node, into, (spread,), ("s0",)))
        accumulate = Affine(1)
    sources = (
        _view(moving, groups, moving.rows, _still(n), moving.cols),
        _view(stationary, groups, _still(m), stationary.cols, stationary.rows),
    )
    rank, kept = len(target.dims), 1 + len(m) + len(n)
    (target, *sources), axes = _without_ones((target, *sources), range(kept, rank))
    kw.emit(
        Reduce(kw.node, "sum", axes, target, tuple(sources), ("s0", "s1", "mul"), (), accumulate)
    )


def _still(dims: Sequence[Dim]) -> tuple[Dim, ...]:
    """The same dims for an operand that repeats along them."""
    return tuple((extent, 0) for extent, _ in dims)


def _view(
    block: Block, groups: int, m: tuple[Dim, ...], n: tuple[Dim, ...], k: tuple[Dim, ...]
) -> View:
    """A block over the groups and the dims of M, N and K."""
    step = dict(block.offset.terms).get(_GROUP, 0)
    place = Held(block.ticket, (), block.offset - var(_GROUP, step), block.part)
    return place.view(((Extent(groups), step), *m, *n, *k))


def _without_ones(views: Sequence[View], reduced: range) -> tuple[list[View], tuple[int, ...]]:
    """The views without the dims that have one element, as far as some are left of those reduced
    and of the others, and where the reduced ones are then."""
    dims = views[0].dims
    left = [a for a, (extent, _) in enumerate(dims) if extent.size > 1]
    if reduced and not set(left) & set(reduced):
        left.append(reduced[-1])
    if not set(left) - set(reduced):
        left.insert(0, 0)
    made = [View(v.buffer, tuple(v.dims[a] for a in left), v.offset, v.slot) for v in views]
    return made, tuple(i for i, a in enumerate(left) if a in reduced)
