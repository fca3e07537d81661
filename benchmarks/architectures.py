"""Networks as lists of convolutions, written from the papers that describe them.

resnet50       He et al., "Deep Residual Learning", CVPR 2016; stride in the 3 x 3 convolution
inception_v4   Szegedy et al., "Inception-v4", AAAI 2017; figures 3 to 9, 299 x 299 pixels
densenet       Huang et al., "Densely Connected Convolutional Networks", CVPR 2017
mobilenet_v2   Sandler et al., "MobileNetV2", CVPR 2018; channels rounded to multiples of 8
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from gemms import Conv, Network

RESNET50 = ((64, 3, 56), (128, 4, 28), (256, 6, 14), (512, 3, 7))
"""(Inner channels, blocks, side of the output)."""
MOBILENET = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip
"""(Expansion, channels, blocks, stride of the first)."""

Path = Sequence[tuple[int, int, int]]
"""Convolutions one after the other: (channels out, R, S)."""


@cache
def resnet50() -> Network:
    """53 convolutions."""
    convs = [Conv(3, 64, 7, 7, 224, 112)]
    channels, side = 64, 56
    for inner, blocks, p in RESNET50:
        for block in range(blocks):
            convs.append(Conv(channels, inner, 1, 1, side, side))
            convs.append(Conv(inner, inner, 3, 3, side, p))
            convs.append(Conv(inner, 4 * inner, 1, 1, p, p))
            if block == 0:
                convs.append(Conv(channels, 4 * inner, 1, 1, side, p))
            channels, side = 4 * inner, p
    return Network(tuple(convs), channels)


def _along(c: int, path: Path, side: int, last: int | None = None) -> list[Conv]:
    """The convolutions of a path; the last one's output has another side where it is given."""
    convs = []
    for i, (k, r, s) in enumerate(path):
        p = last if last is not None and i == len(path) - 1 else side
        convs.append(Conv(c, k, r, s, side, p))
        c = k
    return convs


@cache
def inception_v4() -> Network:
    """149 convolutions."""
    convs = [Conv(3, 32, 3, 3, 299, 149), Conv(32, 32, 3, 3, 149, 147)]
    convs += [Conv(32, 64, 3, 3, 147, 147), Conv(64, 96, 3, 3, 147, 73)]
    convs += _along(160, [(64, 1, 1), (96, 3, 3)], 73, 71)
    convs += _along(160, [(64, 1, 1), (64, 7, 1), (64, 1, 7), (96, 3, 3)], 73, 71)
    convs.append(Conv(192, 192, 3, 3, 71, 35))
    for _ in range(4):
        convs += _along(384, [(96, 1, 1)], 35)
        convs += _along(384, [(64, 1, 1), (96, 3, 3)], 35)
        convs += _along(384, [(64, 1, 1), (96, 3, 3), (96, 3, 3)], 35)
        convs += _along(384, [(96, 1, 1)], 35)
    convs += _along(384, [(384, 3, 3)], 35, 17)
    convs += _along(384, [(192, 1, 1), (224, 3, 3), (256, 3, 3)], 35, 17)
    for _ in range(7):
        convs += _along(1024, [(384, 1, 1)], 17)
        convs += _along(1024, [(192, 1, 1), (224, 1, 7), (256, 7, 1)], 17)
        convs += _along(1024, [(192, 1, 1), (192, 7, 1), (224, 1, 7), (224, 7, 1), (256, 1, 7)], 17)
        convs += _along(1024, [(128, 1, 1)], 17)
    convs += _along(1024, [(192, 1, 1), (192, 3, 3)], 17, 8)
    convs += _along(1024, [(256, 1, 1), (256, 1, 7), (320, 7, 1), (320, 3, 3)], 17, 8)
    for _ in range(3):
        convs += _along(1536, [(256, 1, 1)], 8)
        convs += _along(1536, [(384, 1, 1), (256, 1, 3)], 8)
        convs += _along(384, [(256, 3, 1)], 8)
        convs += _along(1536, [(384, 1, 1), (448, 3, 1), (512, 1, 3), (256, 1, 3)], 8)
        convs += _along(512, [(256, 3, 1)], 8)
        convs += _along(1536, [(256, 1, 1)], 8)
    return Network(tuple(convs), 1536)


@cache
def densenet(blocks: tuple[int, int, int, int], growth: int = 32) -> Network:
    """(6, 12, 24, 16) is DenseNet-121, (6, 12, 64, 48) is DenseNet-264."""
    channels, side = 2 * growth, 56
    convs = [Conv(3, channels, 7, 7, 224, 112)]
    for i, layers in enumerate(blocks):
        for _ in range(layers):
            convs += _along(channels, [(4 * growth, 1, 1), (growth, 3, 3)], side)
            channels += growth
        if i < len(blocks) - 1:
            convs += _along(channels, [(channels // 2, 1, 1)], side)
            channels, side = channels // 2, side // 2
    return Network(tuple(convs), channels)


@cache
def mobilenet_v2(width: float = 1.0) -> Network:
    """52 convolutions, 17 of them depthwise; the last one keeps its 1280 channels if narrowed."""
    side, channels = 112, _eighths(32 * width)
    convs = [Conv(3, channels, 3, 3, 224, side)]
    for expansion, wide, blocks, stride in MOBILENET:
        for block in range(blocks):
            p = side // stride if block == 0 else side
            inner, out = channels * expansion, _eighths(wide * width)
            if expansion > 1:
                convs.append(Conv(channels, inner, 1, 1, side, side))
            convs.append(Conv(inner, inner, 3, 3, side, p, inner))
            convs.append(Conv(inner, out, 1, 1, p, p))
            channels, side = out, p
    last = _eighths(1280 * max(1.0, width))
    return Network((*convs, Conv(channels, last, 1, 1, side, side)), last)


def _eighths(channels: float) -> int:
    """The nearest multiple of 8, not much below and 8 at least."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near
