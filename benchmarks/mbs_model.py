"""Estimated DRAM traffic of mini-batch serialization, beside a published-method cross-check.

Nothing is executed here: the figures are those of passes/traffic.py, with 16-bit data, batch 32
(AlexNet 64), group norm, and a buffer of 10 MiB with nothing reserved.  `table` is an independent
model of the method's description (Lym et al. 2019): forward and backward share their groups, an
activation's sign is kept as a bit, weights are read again in each iteration, partial weight
gradients have 16 bits.  The optimizer's traffic is left out, as there.

    python benchmarks/mbs_model.py [NAME=]MODEL.onnx …

Without arguments: the ResNet-50 that ships with the onnx package.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from ccnn.compiler.reader import ReadOptions, read_model
from ccnn.passes.autodiff import differentiate
from ccnn.passes.graph import Graph
from ccnn.passes.norm_policy import NormPolicy
from ccnn.passes.pipeline import run_pipeline
from ccnn.passes.recompute import Recompute
from ccnn.passes.serialize_minibatch import SerializeMinibatch
from ccnn.passes.steps import ElementBytes
from ccnn.passes.traffic import estimate

TABLE = {  # baseline in GiB; then IL, MBS-FS, MBS1 and MBS2 as parts of it
    "resnet50": (12.64, 0.967, 0.464, 0.352, 0.271),
    "resnet101": (18.95, 0.935, 0.488, 0.354, 0.275),
    "resnet152": (26.70, 0.931, 0.480, 0.351, 0.271),
    "inception_v3": (11.38, 0.820, 0.864, 0.418, 0.321),
    "inception_v4": (21.30, 0.865, 0.871, 0.460, 0.339),
    "alexnet": (0.84, 0.979, 3.389, 0.717, 0.717),
}
PAPER = ElementBytes(partial=2)
OURS = ElementBytes()
BUFFER = 10 * 2**20


def step(path: Path, batch: int, norm: str) -> Graph:
    """A training step in primitives, without the optimizer."""
    read = read_model(path, ReadOptions(batch=batch))
    return run_pipeline(differentiate(NormPolicy(norm)(read.graph), read.loss))


def part(graph: Graph, baseline: int, serialize: SerializeMinibatch, anew: str = "none") -> float:
    """Estimated traffic with these passes, as a part of the baseline."""
    grouped = serialize(Recompute(anew)(graph))
    return estimate(grouped, serialize.bytes_per).total / baseline


def row(name: str, path: Path, norm: str) -> str:
    """One network's line."""
    began = time.monotonic()
    batch = 64 if name == "alexnet" else 32
    graph = step(path, batch, norm)
    baseline = estimate(graph, PAPER).total
    paper = [
        SerializeMinibatch(BUFFER, mode="mbs2", sub_batch=batch, keep=False, bytes_per=PAPER),
        *(
            SerializeMinibatch(BUFFER, mode=m, method="greedy", keep=False, bytes_per=PAPER)
            for m in ("full", "mbs1", "mbs2")
        ),
    ]
    cells = [f"{baseline / 2**30:9.2f}"]
    cells += [f"{part(graph, baseline, p):8.3f}" for p in paper]
    ours = SerializeMinibatch(BUFFER, merge_moments=True, bytes_per=OURS)
    cells += [f"{part(graph, baseline, ours, r):8.3f}" for r in ("none", "cheap", "layers")]
    known = TABLE.get(name, ()) if norm == "group" else ()
    shown = " ".join(f"{v:g}" for v in known) or "-"
    return f"{name:14}{norm:7}{''.join(cells)}  {time.monotonic() - began:5.1f} s   {shown}"


def shipped() -> Path:
    """A network that comes with the onnx package."""
    import onnx

    return Path(onnx.__file__).parent / "backend/test/data/light/light_resnet50.onnx"


def main(arguments: list[str]) -> int:
    """Print the table, one network after the other."""
    models = [a.partition("=")[::2] if "=" in a else (Path(a).stem, a) for a in arguments]
    models = models or [("resnet50", str(shipped()))]
    sys.stdout.write(
        f"{'estimated':14}{'norm':7}{'base GiB':>9}{'IL':>8}{'full':>8}{'mbs1':>8}{'mbs2':>8}"
        f"{'best':>8}{'+cheap':>8}{'+layers':>8}  {'':7}   table: base GiB, IL, FS, MBS1, MBS2\n"
    )
    for name, path in models:
        for norm in ("group", "exact"):
            sys.stdout.write(row(name.removeprefix("std_"), Path(path), norm) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
