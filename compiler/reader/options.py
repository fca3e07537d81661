"""What the caller of the reader may choose, and what it gets back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ccnn.compiler.reader.problems import ReadReport
from ccnn.passes.graph import Graph


@dataclass(frozen=True)
class ReadOptions:
    """How a model is read.

    batch: samples in the step; None keeps the file's own, 1 where that is symbolic.
    loss: None takes the model's own loss, cross-entropy when it has none.
    seed: for weights that the file does not hold.  dropout: keep Dropout nodes active, drawing
    from `dropout_seed`.  unbiased_variance: running variances take n/(n-1) of the batch variance
    (PyTorch) instead of the population's (ONNX).
    """

    batch: int | None = None
    loss: Literal["ce", "mse"] | None = None
    seed: int = 0
    dropout: bool = False
    dropout_seed: int = 0
    unbiased_variance: bool = True


@dataclass(frozen=True)
class ReadResult:
    """A graph whose outputs are the model's own and, last, the loss; and what to know about it."""

    graph: Graph
    report: ReadReport
    loss: str
    target: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
