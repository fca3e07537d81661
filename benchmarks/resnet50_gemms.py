"""The GEMMs of a ResNet-50 training step, dense and with the channels pruning leaves.

A layer becomes three GEMMs (M x N x K; moving rows, width, reduction):

    forward          B*P*Q  x  K      x  C*R*S
    data gradient    B*H*W  x  C      x  K*R*S     zeros put in by strides count; none for conv 1
    weight gradient  C*R*S  x  K      x  B*P*Q
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LOG = Path(__file__).parent / "data" / "prunetrain_resnet50.txt"
RATIOS = ("0.1", "0.2", "0.3")
EPOCHS = tuple(range(10, 91, 10))
CLASSES = 1000
STAGES = ((64, 3, 56), (128, 4, 28), (256, 6, 14), (512, 3, 7))
"""(Inner channels, blocks, side of the output)."""


@dataclass(frozen=True)
class Conv:
    """Channels, kernel side, input and output side of a square convolution."""

    c: int
    k: int
    r: int
    h: int
    p: int


@dataclass(frozen=True)
class Gemm:
    """M x N x K, its layer's number and what it computes; `split` is the paper's over groups."""

    layer: int
    phase: str
    m: int
    n: int
    k: int

    @property
    def split(self) -> str:
        """Gradients of weights are split along K, the others along M."""
        return "k" if self.phase == "weight gradient" else "m"

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.m * self.n * self.k


@cache
def dense() -> tuple[tuple[Conv, ...], int]:
    """The 53 convolutions in order of execution and the classifier's inputs."""
    convs = [Conv(3, 64, 7, 224, 112)]
    channels, side = 64, 56
    for inner, blocks, p in STAGES:
        for block in range(blocks):
            convs.append(Conv(channels, inner, 1, side, side))
            convs.append(Conv(inner, inner, 3, side, p))
            convs.append(Conv(inner, 4 * inner, 1, p, p))
            if block == 0:
                convs.append(Conv(channels, 4 * inner, 1, side, p))
            channels, side = 4 * inner, p
    return tuple(convs), channels


def nodes() -> list[tuple[list[int], list[int]]]:
    """(readers, writers) of each tensor that shortcuts share, as indices; -1 is the classifier."""
    found: list[tuple[list[int], list[int]]] = [([], [0])]
    at = 1
    for _, blocks, _ in STAGES:
        for block in range(blocks):
            found[-1][0].append(at)
            if block == 0:
                found[-1][0].append(at + 3)
                found.append(([], [at + 2, at + 3]))
                at += 4
            else:
                found[-1][1].append(at + 2)
                at += 3
    found[-1][0].append(-1)
    return found


@cache
def pruned(ratio: str, epoch: int) -> tuple[tuple[Conv, ...], int]:
    """As `dense`, after a reconfiguration: all who share a tensor take its largest count."""
    head = f"{ratio} e{epoch} "
    lines = LOG.read_text("utf-8").splitlines()
    line = next(line for line in lines if line.startswith(head))
    pairs = [(int(c), int(k)) for c, k in re.findall(r"(\d+)>(\d+)", line)]
    outer = int(line.rpartition("fc")[2])
    ins, outs = [c for c, _ in pairs], [k for _, k in pairs]
    for readers, writers in nodes():
        counts = [ins[i] if i >= 0 else outer for i in readers] + [outs[i] for i in writers]
        for i in readers:
            if i >= 0:
                ins[i] = max(counts)
            else:
                outer = max(counts)
        for i in writers:
            outs[i] = max(counts)
    shapes, _ = dense()
    convs = tuple(Conv(c, k, s.r, s.h, s.p) for c, k, s in zip(ins, outs, shapes, strict=True))
    return convs, outer


def step_gemms(network: tuple[Sequence[Conv], int], batch: int) -> list[Gemm]:
    """All GEMMs of a training step."""
    convs, outer = network
    layers = [*convs, Conv(outer, CLASSES, 1, 1, 1)]
    gemms = []
    for i, v in enumerate(layers):
        taps, ins, outs = v.r * v.r, batch * v.h * v.h, batch * v.p * v.p
        gemms.append(Gemm(i, "forward", outs, v.k, v.c * taps))
        if i:
            gemms.append(Gemm(i, "data gradient", ins, v.c, v.k * taps))
        gemms.append(Gemm(i, "weight gradient", v.c * taps, v.k, outs))
    return gemms
