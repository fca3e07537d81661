"""Bringing a block of a tensor to where an engine can read it, with what surrounds the tensor.

From DRAM it is loaded, and the load fills in what lies outside the tensor.  A block of a tensor
that stays in the buffer is read in place; where it reaches beyond the tensor, the vector unit
copies it into a slot with the fill around it.
"""

from __future__ import annotations

from math import prod

from ccnn.compiler.codegen.emit import CodegenError, KernelWriter, Pipe, dims_of
from ccnn.compiler.codegen.place import Held
from ccnn.compiler.codegen.scope import Scope, dense
from ccnn.targets.program import Affine, Extent, Load, Map

Starts = tuple[Affine, ...]


def overhangs(
    scope: Scope, tensor: str, starts: Starts, sizes: tuple[int, ...], fill: float = 0.0
) -> bool:
    """True when a block at constant starts reaches beyond its tensor and the zeros around it."""
    shape = scope.graph[tensor].shape
    around: list[tuple[int, int]] = [(0, 0)] * len(shape)
    if tensor in scope.margins and fill == 0.0:
        around[-2:] = scope.margins[tensor]
    return any(
        not s.terms and (s.const < -before or s.const + n > d + behind)
        for s, n, d, (before, behind) in zip(starts, sizes, shape, around, strict=True)
    )


def giver_of(scope: Scope, tensor: str) -> str:
    """The engine that fills the pipe of a tensor: DMA, or the vector unit for one that stays."""
    return "vector" if tensor in scope.regions else "load"


def bring(
    kw: KernelWriter,
    scope: Scope,
    pipe: Pipe,
    taker: str,
    tensor: str,
    starts: Starts,
    sizes: tuple[int, ...],
    fill: float = 0.0,
) -> Held:
    """Fill the next slot of `pipe` with a block and let `taker` wait for it.

    The caller says when `taker` is done with the slot.
    """
    giver = giver_of(scope, tensor)
    held = Held(kw.fill(pipe, giver), dense(sizes))
    if giver == "load":
        where = scope.in_dram(tensor, starts)
        block = held.view(dims_of(sizes, sizes))
        kw.emit(Load(kw.node, block, tensor, where, (1,) * len(where), fill))
    else:
        _copy(kw, scope, held, tensor, starts, sizes, fill)
    kw.filled(pipe, giver)
    kw.take(pipe, taker)
    return held


def _copy(
    kw: KernelWriter,
    scope: Scope,
    target: Held,
    tensor: str,
    starts: Starts,
    sizes: tuple[int, ...],
    fill: float,
) -> None:
    flat = (prod(sizes),)
    kw.emit(Map(kw.node, target.view(dims_of(flat, flat)), (), (fill,)))
    shape = scope.graph[tensor].shape
    inside: list[Affine] = []
    counts: list[Extent] = []
    corner = 0
    for start, n, d, stride in zip(starts, sizes, shape, target.strides, strict=True):
        if start.terms:
            if n > d:
                raise CodegenError(f"'{kw.name}': tiles of '{tensor}' must hold whole rows")
            inside.append(start)
            counts.append(Extent(n, Affine(d) - start if d % n else None))
            continue
        skip = max(0, -start.const)
        corner += skip * stride
        inside.append(start + skip)
        counts.append(Extent(min(n - skip, d - inside[-1].const)))
    if min(c.size for c in counts) < 1:
        return
    source = scope.held(tensor, tuple(inside))
    reads = source.view(tuple(zip(counts, source.strides, strict=True)))
    lands = target.view(tuple(zip(counts, target.strides, strict=True)), Affine(corner))
    kw.emit(Map(kw.node, lands, (reads,), ("s0",)))
