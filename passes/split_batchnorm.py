"""Pass `split-batchnorm`: every norm, forward and backward, as reduce, finalise and apply.

before:  %y, %n, %v, %m, %i = batch_norm(%x, %s, %b, %old_n, %old_v)
         %dx, %ds, %db = batch_norm_grad(%dy, %x, %s, %m, %i)
after:   %m, %u = moments(%x)                                          reduce
         %i = map(%u) {exprs=("1 / sqrt(a + eps)",)}                   finalise
         %p = map(%i, %s) {exprs=("a * b",)}
         %y = map(%x, %m, %p, %b) {exprs=("(a - b) * c + d",)}         apply
         %t1, %t2 = reduce(%dy, %x, %m) {exprs=("a", "a * (b - c)")}
         %p, %r, %q = map(%m, %i, %s, %t1, %t2) {…}
         %dx = map(%dy, %x, %p, %r, %q) {exprs=("a * c + b * d + e",)}
         %ds, %db = map(%t1, %t2, %i)

Only small tensors lead from one part to the next, so each part may run in the sweep of its
neighbour: a reduce where its operand is made, an apply where its result is read (Jung et al. 2019;
Wang, Hao and Li 2020).  Between reduce and apply the whole batch has to pass; with statistics of
single samples (group, instance and layer norms) only the sample.

The forward statistics take one sweep and are safe: `moments` merges means and sums of squared
deviations (Chan, Golub and LeVeque 1979) and never forms E[x^2] - E[x]^2, which cancels where the
mean is large beside the deviation.  The backward sums use x minus the mean, which is known by then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ccnn.passes.expand import expand
from ccnn.passes.graph import Graph
from ccnn.passes.ops.layer_norm import LayerNorm, LayerNormGrad
from ccnn.passes.ops.normalization import NORMALIZATION

NORMS = frozenset(op.name for op in (*NORMALIZATION, LayerNorm, LayerNormGrad))
"""Ops that are split."""


@dataclass(frozen=True)
class SplitBatchNorm:
    """Splits norms and their gradients into sums, what is made of the sums, and its use."""

    name: ClassVar[str] = "split-batchnorm"

    def __call__(self, graph: Graph) -> Graph:
        """The graph without norms; a graph that has none is unchanged."""
        return expand(graph, NORMS) if any(n.op in NORMS for n in graph.nodes) else graph
