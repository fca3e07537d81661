"""The GEMMs of a training step, from the shapes of a network's convolutions.

A layer becomes three GEMMs (M x N x K; moving rows, width, reduction), B samples at a time:

    forward          B*P*Q  x  K      x  C*R*S
    data gradient    B*H*W  x  C      x  K*R*S     zeros put in by strides count; none for conv 1
    weight gradient  C*R*S  x  K      x  B*P*Q

and a convolution of g groups g times three, each with C and K divided by g.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CLASSES = 1000


@dataclass(frozen=True)
class Conv:
    """A convolution on square images: channels, kernel R x S, input side H, output side P."""

    c: int
    k: int
    r: int
    s: int
    h: int
    p: int
    groups: int = 1

    @property
    def weights(self) -> int:
        """Weights of the filters."""
        return self.c * self.k * self.r * self.s // self.groups


@dataclass(frozen=True)
class Network:
    """Convolutions in order of execution; the classifier's inputs."""

    convs: tuple[Conv, ...]
    outer: int

    @property
    def weights(self) -> int:
        """Weights without biases and norms."""
        return sum(conv.weights for conv in self.convs) + self.outer * CLASSES

    @property
    def macs(self) -> int:
        """Multiplications of one sample's inference."""
        return sum(v.weights * v.p * v.p for v in self.convs) + self.outer * CLASSES


@dataclass(frozen=True)
class Gemm:
    """`count` GEMMs M x N x K of a layer, by its number, and what they compute."""

    layer: int
    phase: str
    m: int
    n: int
    k: int
    count: int = 1

    @property
    def split(self) -> str:
        """Over groups: FlexSA splits gradients of weights along K, the others along M."""
        return "k" if self.phase == "weight gradient" else "m"

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.m * self.n * self.k * self.count


def step_gemms(network: Network, batch: int) -> list[Gemm]:
    """All GEMMs of a training step."""
    layers = [*network.convs, Conv(network.outer, CLASSES, 1, 1, 1, 1)]
    gemms = []
    for i, v in enumerate(layers):
        taps, ins, outs = v.r * v.s, batch * v.h * v.h, batch * v.p * v.p
        c, k = v.c // v.groups, v.k // v.groups
        gemms.append(Gemm(i, "forward", outs, k, c * taps, v.groups))
        if i:
            gemms.append(Gemm(i, "data gradient", ins, c, k * taps, v.groups))
        gemms.append(Gemm(i, "weight gradient", c * taps, k, outs, v.groups))
    return gemms


def without_depthwise(gemms: Sequence[Gemm]) -> list[Gemm]:
    """Those of convolutions that mix channels."""
    return [gemm for gemm in gemms if gemm.count == 1]
