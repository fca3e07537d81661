"""ResNet-50 with the channels that PruneTrain leaves, from its authors' log.

Layers that share a tensor through a shortcut all take the largest count of any of them.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from architectures import RESNET50, resnet50
from gemms import Conv, Network

LOG = Path(__file__).parent / "data" / "prunetrain_resnet50.txt"
RATIOS = ("0.1", "0.2", "0.3")
EPOCHS = tuple(range(10, 91, 10))


def nodes() -> list[tuple[list[int], list[int]]]:
    """(readers, writers) of each tensor that shortcuts share, as indices; -1 is the classifier."""
    found: list[tuple[list[int], list[int]]] = [([], [0])]
    at = 1
    for _, blocks, _ in RESNET50:
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
def pruned(ratio: str, epoch: int) -> Network:
    """ResNet-50 after the reconfiguration at an epoch, with a penalty ratio of the log."""
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
    shapes = resnet50().convs
    return Network(
        tuple(Conv(c, k, v.r, v.s, v.h, v.p) for c, k, v in zip(ins, outs, shapes, strict=True)),
        outer,
    )
