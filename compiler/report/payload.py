"""The data inside report.html: what its script draws, as one compact dictionary.

Layers are named by their row in report.json, kernels by their place in the program, and every
line of the listing is kept once: most kernels of a network share most of their text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ccnn.compiler.report.build import layer_key
from ccnn.compiler.report.detail import (
    TENSOR_CLASSES,
    BufferUse,
    KernelDetail,
    edges,
    tensor_bytes,
    tensor_classes,
)
from ccnn.targets.program import ENGINES, INSTRUCTIONS, Instruction, Item, Kernel, Loop, Program
from ccnn.targets.simulator.trace import Event
from ccnn.targets.text import instruction_text

LONGEST_LISTING = 300
"""Lines of one kernel that are shown; program.asm has them all."""


class Lines:
    """A numbering of texts, equal ones alike."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __getitem__(self, text: str) -> int:
        return self.numbers.setdefault(text, len(self.numbers))


def layer_numbers(report: Mapping[str, Any], program: Program) -> list[int]:
    """Program node number to row of the report's layers."""
    rows = {(row["node"], row["phase"]): n for n, row in enumerate(report["layers"])}
    return [rows[layer_key(ref.origin, ref.phase)] for ref in program.nodes]


def make_payload(
    report: Mapping[str, Any],
    program: Program,
    details: Sequence[KernelDetail],
    tilings: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything the script of report.html needs, besides what stands in the page itself."""
    rows = layer_numbers(report, program)
    classes = tensor_classes(program)
    tensors = {t.name: n for n, t in enumerate(program.tensors)}
    lines = Lines()
    kernels = [
        _kernel(kernel, detail, rows, tensors, lines)
        for kernel, detail in zip(program.kernels, details, strict=True)
    ]
    return {
        "engines": list(ENGINES),
        "opcodes": [kind.opcode for kind in INSTRUCTIONS],
        "classes": list(TENSOR_CLASSES),
        "cycles": report["totals"]["cycles"],
        "clock_ghz": report["machine"]["clock_ghz"],
        "gbuf": report["machine"]["gbuf_bytes"],
        "peak": report["machine"]["rows"] * report["machine"]["cols"],
        "bandwidth": report["machine"]["dram_bandwidth_gib_s"]
        * 2**30
        / (report["machine"]["clock_ghz"] * 1e9),
        "layers": [
            {k: v for k, v in row.items() if k not in ("seconds", "share")}
            for row in report["layers"]
        ],
        "kernels": kernels,
        "tensors": [
            [
                t.name,
                f"{t.dtype}[{','.join(map(str, t.shape))}]",
                TENSOR_CLASSES.index(classes[t.name]),
                tensor_bytes(t),
            ]
            for t in program.tensors
        ],
        "nodes": [[ref.name, ref.op] for ref in program.nodes],
        "rows": rows,
        "tilings": {name: str(tiling) for name, tiling in tilings.items()},
        "edges": _layer_edges(program, rows),
        "lines": list(lines.numbers),
    }


def _kernel(
    kernel: Kernel,
    detail: KernelDetail,
    rows: Sequence[int],
    tensors: Mapping[str, int],
    lines: Lines,
) -> dict[str, Any]:
    listing = list(_listing(kernel.body, 0))
    shown = [lines[line] for line in listing[:LONGEST_LISTING]]
    return {
        "n": detail.name,
        "s": detail.start,
        "e": detail.end,
        "l": list(dict.fromkeys(rows[node] for node in detail.nodes)),
        "g": list(detail.nodes),
        "b": [engine.busy_cycles for engine in detail.engines],
        "w": [list(map(list, engine.stalls)) for engine in detail.engines],
        "t": [[tensors[t.name], t.read_bytes, t.write_bytes] for t in detail.tensors],
        "u": [_buffer(b, tensors) for b in detail.buffers],
        "v": _events(detail.events),
        "i": detail.counts.instructions,
        "x": shown,
        "m": max(0, len(listing) - LONGEST_LISTING),
    }


def _buffer(b: BufferUse, tensors: Mapping[str, int]) -> list[Any]:
    moved = [[tensors[t] for t in names] for names in (b.loaded, b.stored)]
    return [b.name, b.space, b.address, b.bytes, b.depth, *moved]


def _events(events: Sequence[Event]) -> list[int]:
    """Flat triples: opcode, start after the event before, duration."""
    opcodes = {kind.opcode: n for n, kind in enumerate(INSTRUCTIONS)}
    flat: list[int] = []
    before = 0
    for event in events:
        flat += (opcodes[event.opcode], event.start - before, event.end - event.start)
        before = event.start
    return flat


def _listing(items: Sequence[Item], depth: int) -> Iterator[str]:
    for item in items:
        if isinstance(item, Loop):
            yield f"{' ' * depth}loop {item.var} {item.trip} {{"
            yield from _listing(item.body, depth + 1)
            yield f"{' ' * depth}}}"
        else:
            text = instruction_text(item)
            # Which node it serves is said by the kernel; without it more lines are alike.
            plain = text.rpartition(" #")[0] if isinstance(item, Instruction) else text
            yield " " * depth + plain


def _layer_edges(program: Program, rows: Sequence[int]) -> list[list[int]]:
    """[from row, to row, bytes] of the forward phase and the loss."""
    found: dict[tuple[int, int], int] = defaultdict(int)
    for edge in edges(program):
        ends = (edge.source, edge.target)
        if all(program.nodes[n].phase in ("forward", "loss") for n in ends):
            pair = rows[edge.source], rows[edge.target]
            if pair[0] != pair[1]:
                found[pair] = max(found[pair], edge.bytes)
    return [[a, b, n] for (a, b), n in sorted(found.items())]


@dataclass(frozen=True)
class Moved:
    """DRAM bytes of one tensor that one node moved in one kernel."""

    node: int
    tensor_class: str
    read_bytes: int
    write_bytes: int


def _moves(program: Program, details: Sequence[KernelDetail]) -> Iterator[Moved]:
    """Every move; where several nodes of a kernel load one tensor, the first gets its bytes."""
    classes = tensor_classes(program)
    for detail in details:
        movers = {name: (loader, storer) for name, loader, storer in detail.movers}
        for t in detail.tensors:
            loader, storer = movers[t.name]
            if t.read_bytes:
                yield Moved(loader, classes[t.name], t.read_bytes, 0)
            if t.write_bytes:
                yield Moved(storer, classes[t.name], 0, t.write_bytes)


def class_traffic(
    program: Program, details: Sequence[KernelDetail]
) -> dict[tuple[str, str], tuple[int, int]]:
    """(tensor class, phase) to DRAM bytes read and written."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for m in _moves(program, details):
        key = m.tensor_class, program.nodes[m.node].phase
        read, write = found.get(key, (0, 0))
        found[key] = read + m.read_bytes, write + m.write_bytes
    return found


def layer_traffic(
    program: Program, details: Sequence[KernelDetail], rows: Sequence[int]
) -> dict[int, dict[str, int]]:
    """Row of the report's layers to DRAM bytes by tensor class."""
    found: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for m in _moves(program, details):
        found[rows[m.node]][m.tensor_class] += m.read_bytes + m.write_bytes
    return {row: dict(by_class) for row, by_class in found.items()}
