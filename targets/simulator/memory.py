"""What the program reads and writes: DRAM and GBUF as bytes, the small buffers as matrices.

Bytes are moved as unsigned integers of the element's width (`raw`), which numpy copies fast for
every type; `widen` and `narrow` turn them into numbers of the accumulation type and back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ccnn.targets.program import DTYPE_BYTES, Buffer, Kernel, Placed, Program
from ccnn.targets.simulator.errors import SimulationError

DTYPES: dict[str, np.dtype] = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f16": np.dtype(np.float16),
    "i32": np.dtype(np.int32),
    "u8": np.dtype(np.uint8),
}
"""numpy's type for each dtype of a program."""

RAW = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32), 8: np.dtype("u8")}
"""The unsigned integer of so many bytes."""


def raw_dtype(dtype: str) -> np.dtype:
    """The unsigned integer as wide as `dtype`."""
    return RAW[DTYPE_BYTES[dtype]]


def widen(raw: np.ndarray, dtype: str, accum: np.dtype) -> np.ndarray:
    """Raw elements of `dtype` as numbers of the accumulation type (a view where they are that)."""
    return raw.view(DTYPES[dtype]).astype(accum, copy=False)


def narrow(values: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers rounded to `dtype` (ties to even; integers truncate), as raw elements."""
    return values.astype(DTYPES[dtype], copy=False).view(raw_dtype(dtype))


@dataclass(frozen=True)
class Storage:
    """One buffer of a kernel: its GBUF bytes by slot, or its matrices by slot (None: empty)."""

    buffer: Buffer
    slots: list[np.ndarray]
    tiles: list[np.ndarray | None]

    def clear(self) -> None:
        """Forget the matrices; GBUF bytes stay."""
        self.tiles[:] = [None] * len(self.tiles)


class Memory:
    """DRAM and GBUF of one machine; `poison` fills both with NaN so that stale reads show."""

    def __init__(self, program: Program, gbuf_bytes: int, poison: bool = False) -> None:
        make: Callable[..., np.ndarray] = np.zeros if not poison else np.empty
        self.dram = make(program.dram_bytes, np.uint8)
        self.gbuf = make(gbuf_bytes, np.uint8)
        if poison:
            self.dram.fill(0xFF)
            self.gbuf.fill(0xFF)
        self.tensors = {t.name: t for t in program.tensors}

    def placed(self, name: str) -> Placed:
        """The tensor called `name`; raises SimulationError when there is none."""
        if name not in self.tensors:
            raise SimulationError(
                f"the program has no tensor '{name}'; it has {len(self.tensors)}, such as "
                + ", ".join(list(self.tensors)[:5])
            )
        return self.tensors[name]

    def bytes_of(self, tensor: Placed) -> np.ndarray:
        """The bytes of a tensor in DRAM."""
        size = DTYPE_BYTES[tensor.dtype]
        for n in tensor.shape:
            size *= n
        if tensor.address < 0 or tensor.address + size > self.dram.size:
            raise SimulationError(
                f"tensor {tensor.name} takes bytes {tensor.address} to {tensor.address + size}, "
                f"but the program's DRAM has {self.dram.size}"
            )
        return self.dram[tensor.address : tensor.address + size]

    def tensor(self, name: str) -> np.ndarray:
        """A tensor in DRAM, to read and write in place."""
        placed = self.placed(name)
        data = self.bytes_of(placed)
        return np.ndarray(placed.shape, DTYPES[placed.dtype], data)

    def storage(self, kernel: Kernel) -> dict[str, Storage]:
        """The buffers of a kernel by name; raises SimulationError when GBUF is too small."""
        found = {}
        for b in kernel.buffers:
            size = b.size * DTYPE_BYTES[b.dtype]
            slots: list[np.ndarray] = []
            if b.space == "gbuf":
                if b.address < 0 or b.address + size * b.depth > self.gbuf.size:
                    raise SimulationError(
                        f"kernel {kernel.name}: buffer {b.name} ends at byte "
                        f"{b.address + size * b.depth} of a GBUF of {self.gbuf.size}; "
                        "map the layer with smaller tiles or choose a larger machine"
                    )
                starts = [b.address + i * size for i in range(b.depth)]
                slots = [self.gbuf[s : s + size] for s in starts]
            found[b.name] = Storage(b, slots, [None] * b.depth)
        return found
