"""Two passes of ccnn in a compiler of one's own: norms split, then layers fused with their halves.

The graph is built by hand and the buffer is a plain number: neither onnx nor a solver, a machine or
the code generator is needed.

    python examples/two_passes.py
"""

from __future__ import annotations

import numpy as np

from ccnn.passes.autodiff import differentiate
from ccnn.passes.expand import Expand
from ccnn.passes.fuse_layers import FuseLayers
from ccnn.passes.graph import Builder, Graph
from ccnn.passes.interpret import interpret
from ccnn.passes.pipeline import run_pipeline
from ccnn.passes.split_batchnorm import SplitBatchNorm
from ccnn.passes.traffic import estimate


def training_step(batch: int = 16, channels: int = 8, side: int = 16) -> Graph:
    """Three times batch norm, relu and convolution, forward and backward."""
    rng, b = np.random.default_rng(0), Builder("by_hand")
    x = b.input("x", (batch, channels, side, side))
    for k in range(3):
        scale, bias = (
            b.declare(f"{n}{k}", (channels,), "parameter", data=np.full(channels, v))
            for n, v in (("scale", 1.0), ("bias", 0.0))
        )
        seen = [
            b.declare(f"{n}{k}", (channels,), "state", data=np.full(channels, v))
            for n, v in (("mean", 0.0), ("var", 1.0))
        ]
        y, *_ = b.emit_all("batch_norm", [x, scale, bias, *seen], name=f"norm{k}")
        data = rng.normal(0, 0.2, (channels, channels, 3, 3))
        w = b.declare(f"w{k}", data.shape, "parameter", data=data)
        sizes = {"strides": (1, 1), "pads": (1,) * 4, "dilations": (1, 1), "group": 1}
        x = b.emit("conv", [b.emit("relu", [y], name=f"relu{k}"), w], name=f"conv{k}", **sizes)
    loss = b.emit("reduce_mean", [b.emit("mul", [x, x])], axes=(0, 1, 2, 3), keepdims=False)
    return differentiate(b.build([x]), loss)


def main() -> None:
    """Print what each pass makes of the step, and that it computes the same."""
    step = training_step()
    split = SplitBatchNorm()(step)
    print(f"{sum('norm' in n.op for n in step.nodes)} norms and gradients of norms become")
    for node in split.nodes:
        if node.name.startswith("norm1/"):
            print(f"  {node.phase:8} {node.op:8} {node.name}")
    lowered = run_pipeline(split, [Expand()])
    fused = FuseLayers(buffer_bytes=32 * 1024, merge_moments=True)(lowered)
    for group in fused.groups:
        print(f"group of {group.sub_batch or 'all'} samples at a time: {', '.join(group.nodes)}")
    print(f"DRAM {estimate(lowered).total:,} -> {estimate(fused).total:,} bytes")

    x = np.random.default_rng(1).normal(0, 1, (16, 8, 16, 16))
    before, after = interpret(step, {"x": x}), interpret(fused, {"x": x})
    worst = max(float(np.abs(before[g] - after[g]).max()) for g in step.gradients.values())
    print(f"largest difference of a gradient: {worst:.1e}")


if __name__ == "__main__":
    main()
