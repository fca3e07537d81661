"""Passes and their order.

A pass is a frozen dataclass: its fields are its options, calling it takes a graph and gives a
graph.  Its `name` in kebab-case is the name of its file with underscores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import ClassVar, Protocol

from ccnn.passes.check import verify
from ccnn.passes.defer_norms import DeferNorms
from ccnn.passes.early_masks import EarlyMasks
from ccnn.passes.expand import Expand
from ccnn.passes.fuse_activations import FuseActivations
from ccnn.passes.fuse_layers import FuseLayers
from ccnn.passes.fuse_updates import FuseUpdates
from ccnn.passes.graph import Graph, GraphError
from ccnn.passes.interleave_gradients import InterleaveGradients
from ccnn.passes.norm_policy import NormPolicy
from ccnn.passes.plugins import PluginError, load_plugin, plugin_names
from ccnn.passes.recompute import Recompute
from ccnn.passes.serialize_minibatch import SerializeMinibatch
from ccnn.passes.share_gradients import ShareGradients
from ccnn.passes.simplify import Simplify
from ccnn.passes.split_batchnorm import SplitBatchNorm
from ccnn.passes.split_concats import SplitConcats


class Pass(Protocol):
    """A rewrite of graphs."""

    name: ClassVar[str]

    def __call__(self, graph: Graph) -> Graph:
        """The rewritten graph; the argument is left as it is."""
        ...


PASSES: dict[str, type[Pass]] = {
    p.name: p
    for p in (
        DeferNorms,
        EarlyMasks,
        Expand,
        FuseActivations,
        FuseLayers,
        FuseUpdates,
        InterleaveGradients,
        NormPolicy,
        Recompute,
        SerializeMinibatch,
        ShareGradients,
        Simplify,
        SplitBatchNorm,
        SplitConcats,
    )
}
"""Every pass of ccnn by its name."""

DEFAULT: tuple[Pass, ...] = (
    Simplify(),  # before expansion: what is folded need not be expanded
    SplitBatchNorm(),  # while forward and backward norms still have names
    Expand(),  # code is generated for primitives only
    FuseActivations(),  # knows norms and additions by their expanded form
    Simplify(),  # expansion leaves chains of reshapes and equal constants behind
)
"""What is run on a differentiated graph before it is mapped."""


def pass_named(name: str) -> type[Pass]:
    """The pass called `name`, ccnn's own or a plug-in's.

    Raises GraphError with names like it when there is none, or when its plug-in is broken.
    """
    if name in PASSES:
        return PASSES[name]
    found = load_plugin("pass", name)
    if found is None:
        close = get_close_matches(name, pass_names(), 3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise GraphError(f"there is no pass '{name}'{hint}")
    if (
        not isinstance(found, type)
        or not any("__call__" in vars(c) for c in found.__mro__)
        or getattr(found, "name", "") != name
    ):
        raise PluginError(
            f"the plug-in pass.{name} is {found!r}; it must be a class whose `name` is '{name}' "
            "and whose instances take a graph and give one"
        )
    return found


def pass_names() -> tuple[str, ...]:
    """Names of all passes, ccnn's own and those of installed plug-ins, sorted."""
    return tuple(sorted({*PASSES, *plugin_names("pass")}))


def run_pipeline(
    graph: Graph,
    passes: Sequence[Pass] = DEFAULT,
    after_each: Callable[[Pass, Graph], None] | None = None,
) -> Graph:
    """The graph after all passes, checked before the first and after each.

    Raises GraphError that names the pass that failed or broke the graph.
    """
    verify(graph)
    for each in passes:
        try:
            graph = each(graph)
            verify(graph)
        except GraphError as error:
            raise GraphError(f"pass '{each.name}': {error}") from error
        if after_each is not None:
            after_each(each, graph)
    return graph
