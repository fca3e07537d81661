"""The ops of the graph language: `OPS` is the one list of them."""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache

from ccnn.passes.graph import GraphError
from ccnn.passes.ops.activations import ACTIVATIONS
from ccnn.passes.ops.arithmetic import ARITHMETIC
from ccnn.passes.ops.base import Op
from ccnn.passes.ops.convolution import CONVOLUTION
from ccnn.passes.ops.gather import GATHER
from ccnn.passes.ops.layer_norm import LAYER_NORM
from ccnn.passes.ops.loss import LOSS
from ccnn.passes.ops.map_reduce import Map, Moments, Random, Reduce
from ccnn.passes.ops.matmul import MATMUL
from ccnn.passes.ops.movement import MOVEMENT
from ccnn.passes.ops.normalization import NORMALIZATION
from ccnn.passes.ops.optimizer import OPTIMIZER
from ccnn.passes.ops.padding import PADDING
from ccnn.passes.ops.pooling import POOLING
from ccnn.passes.ops.reduction import REDUCTION
from ccnn.passes.plugins import PluginError, load_plugin, plugin_names

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        *(Map(), Reduce(), Moments(), Random()),
        *CONVOLUTION,
        *MATMUL,
        *ACTIVATIONS,
        *ARITHMETIC,
        *NORMALIZATION,
        *LAYER_NORM,
        *POOLING,
        *REDUCTION,
        *MOVEMENT,
        *PADDING,
        *GATHER,
        *LOSS,
        *OPTIMIZER,
    )
}
"""Every op of ccnn by its name."""


def op_named(name: str) -> Op:
    """The op called `name`, ccnn's own or a plug-in's.

    Raises GraphError with names like it when there is none, or when its plug-in is broken.
    """
    return OPS[name] if name in OPS else _plugin_op(name)


def op_names() -> tuple[str, ...]:
    """Names of all ops, ccnn's own and those of installed plug-ins, sorted."""
    return tuple(sorted({*OPS, *plugin_names("op")}))


@lru_cache
def _plugin_op(name: str) -> Op:
    found = load_plugin("op", name)
    if found is None:
        close = get_close_matches(name, op_names(), 3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise GraphError(f"there is no op '{name}'{hint}")
    op = found() if isinstance(found, type) else found
    if not isinstance(op, Op) or op.name != name:
        raise PluginError(
            f"the plug-in op.{name} is {found!r}; it must be a subclass of "
            f"ccnn.passes.ops.base.Op whose name is '{name}'"
        )
    return op
