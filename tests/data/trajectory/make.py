"""Makes losses.npz: twenty steps of a small network by PyTorch, with three kinds of norm.

    python tests/data/trajectory/make.py        needs torch, which ccnn itself does not

The network is stem conv, norm, relu, max-pool; a residual block of two convs with norms; global
average pool and a linear layer.  `batch` is BatchNorm2d in training mode, `group` GroupNorm of ten
channels a group, `ghost` a batch norm over four neighbouring samples at a time.  SGD with
momentum and weight decay over four batches in turn, in float64.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

BATCH, CHANNELS, SIDE, CLASSES, STEPS, GHOST = 12, 20, 8, 5, 20, 4
LR, MOMENTUM, DECAY = 0.02, 0.9, 1e-3


class GhostNorm(nn.Module):
    """Statistics of GHOST samples at a time, parameters shared."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.zeros(channels)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [
            functional.batch_norm(p, None, None, self.weight, self.bias, training=True)
            for p in x.split(GHOST)
        ]
        return torch.cat(parts)


NORMS = {
    "batch": nn.BatchNorm2d,
    "group": lambda c: nn.GroupNorm(c // 10, c),
    "ghost": GhostNorm,
}


class Network(nn.Module):
    """Names of parameters are those of the initializers in tests/test_trajectory.py."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        conv = [nn.Conv2d(c, CHANNELS, 3, padding=1, bias=False) for c in (3, CHANNELS, CHANNELS)]
        self.conv0, self.conv1, self.conv2 = conv
        self.norm0, self.norm1, self.norm2 = (NORMS[norm](CHANNELS) for _ in range(3))
        self.fc = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.norm0(self.conv0(x))), 2)
        y = functional.relu(self.norm1(self.conv1(x)))
        x = functional.relu(self.norm2(self.conv2(y)) + x)
        return self.fc(x.mean((2, 3)))


def main() -> None:
    """Draw data and weights once, train with each norm, write all of it."""
    rng = np.random.default_rng(7)
    target = rng.integers(0, CLASSES, (4, BATCH))
    colour = rng.standard_normal((CLASSES, 3, 1, 1))[target]
    images = rng.standard_normal((4, BATCH, 3, SIDE, SIDE)) + colour
    found: dict[str, np.ndarray] = {
        "input": images.astype(np.float32),
        "target": target,
        "hyper": np.array([LR, MOMENTUM, DECAY]),
    }
    weights = {
        name: (rng.standard_normal(p.shape) * 0.2 + name.startswith("norm")).astype(np.float32)
        for name, p in Network("batch").named_parameters()
    }
    found |= {f"w0/{name}": value for name, value in weights.items()}
    for norm in NORMS:
        net = Network(norm).double().train()
        net.load_state_dict(
            {n: torch.from_numpy(v).double() for n, v in weights.items()}, strict=False
        )
        sgd = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
        losses = []
        for step in range(STEPS):
            sgd.zero_grad()
            x = torch.from_numpy(found["input"][step % 4]).double()
            loss = functional.cross_entropy(net(x), torch.from_numpy(found["target"][step % 4]))
            loss.backward()
            sgd.step()
            losses.append(loss.item())
        found[f"loss/{norm}"] = np.array(losses)
        for name, value in net.state_dict().items():
            if norm == "batch" and "running" in name:
                found[f"state/{name}"] = value.numpy()
    np.savez_compressed(Path(__file__).with_name("losses.npz"), **found)


if __name__ == "__main__":
    main()
