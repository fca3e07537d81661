"""The data inside report.html: what its script draws, as one compact dictionary.

Layers are named by their row in report.json, kernels by their place in the program. What kernels
of layers of one size have in common is kept once, as a shape, and so is every line of a listing.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from ccnn.compiler.report.build import layer_key
from ccnn.compiler.report.detail import (
    TENSOR_CLASSES,
    KernelDetail,
    edges,
    instructions,
    tensor_classes,
)
from ccnn.compiler.report.lives import lives
from ccnn.targets.program import (
    ENGINES,
    INSTRUCTIONS,
    Instruction,
    Item,
    Kernel,
    Load,
    Loop,
    Placed,
    Program,
    Store,
)
from ccnn.targets.simulator.trace import Event, LayerTrace
from ccnn.targets.text import instruction_text

LONGEST_LISTING = 300
"""Lines of one node in one kernel that are shown; program.asm has them all."""

LONGEST_PART = 24
"""The same where the kernel has more nodes than one."""


class Shared:
    """A numbering of values that become JSON, equal ones alike."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}

    def __getitem__(self, value: Any) -> int:
        return self.numbers.setdefault(value, len(self.numbers))


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
    groups = {g["kernel"]: [g["sub_batch"], g["passes"]] for g in report.get("groups", ())}
    lines, shapes, types = Shared(), Shared(), Shared()
    kernels = [
        _kernel(kernel, detail, rows, tensors, groups, (lines, shapes))
        for kernel, detail in zip(program.kernels, details, strict=True)
    ]
    return {
        "engines": list(ENGINES),
        "opcodes": [[kind.opcode, ENGINES.index(kind.engine)] for kind in INSTRUCTIONS],
        "classes": list(TENSOR_CLASSES),
        "cycles": report["totals"]["cycles"],
        "clock_ghz": report["machine"]["clock_ghz"],
        "gbuf": report["machine"]["gbuf_bytes"],
        "peak": report["machine"]["rows"] * report["machine"]["cols"] * report["machine"]["arrays"],
        "bandwidth": report["machine"]["dram_bandwidth_gib_s"]
        * 2**30
        / (report["machine"]["clock_ghz"] * 1e9),
        "layers": _columns(report["layers"]),
        "kernels": kernels,
        "shapes": [json.loads(shape) for shape in shapes.numbers],
        "tensors": [
            [t.name, types[_type(t)], TENSOR_CLASSES.index(classes[t.name])]
            for t in program.tensors
        ],
        "types": list(types.numbers),
        "nodes": [[ref.name, ref.op] for ref in program.nodes],
        "rows": rows,
        "tilings": {name: str(tiling) for name, tiling in tilings.items()},
        "edges": _layer_edges(program, rows),
        "lines": list(lines.numbers),
    }


def _type(t: Placed) -> str:
    return f"{t.dtype}[{','.join(map(str, t.shape))}]"


def _columns(layers: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The layers by column, which says each key once; fractions to what a screen shows."""
    if not layers:
        return {}
    keys = [k for k in layers[0] if k not in ("seconds", "share")]
    return {k: [_short(row[k]) for row in layers] for k in keys}


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(value) if value >= 1000 else float(f"{value:.6g}")


def _kernel(
    kernel: Kernel,
    detail: KernelDetail,
    rows: Sequence[int],
    tensors: Mapping[str, int],
    groups: Mapping[str, Sequence[int]],
    shared: tuple[Shared, Shared],
) -> dict[str, Any]:
    """A kernel: what is its own, and the number of the shape it shares with kernels like it."""
    lines, shapes = shared
    names = {name: n for n, name in enumerate(_used(kernel))}
    moved = {t.name: [t.read_bytes, t.write_bytes] for t in detail.tensors}
    listing = _listings(kernel, detail, names)
    most = LONGEST_PART if len(listing) > 1 else LONGEST_LISTING
    shape = {
        "c": detail.cycles,
        "b": [engine.busy_cycles for engine in detail.engines],
        "w": [list(map(list, engine.stalls)) for engine in detail.engines],
        "t": [moved.get(name, [0, 0]) for name in names],
        "u": _buffers(kernel, detail, names),
        # A group's nodes are drawn side by side, not when they ran: events have no place there.
        "v": _events(detail.events) if len(detail.nodes) == 1 else [],
        "i": detail.counts.instructions,
        "o": sorted({i.mode for i in instructions(kernel.body) if i.mode}),
        "x": [[lines[line] for line in each[:most]] for each in listing],
        "m": [max(0, len(each) - most) for each in listing],
    }
    made = {
        "n": detail.name,
        "s": detail.start,
        "l": list(dict.fromkeys(rows[node] for node in detail.nodes)),
        "g": list(detail.nodes),
        "t": [tensors[name] for name in names],
        "k": shapes[json.dumps(shape, separators=(",", ":"))],
    }
    if len(detail.nodes) > 1:
        made["p"] = [_part(layer) for layer in detail.layers]
    if detail.name in groups:
        made["q"] = groups[detail.name]
    return made


def _part(layer: LayerTrace) -> list[int]:
    """What one node of a kernel took: cycles, then engine and its cycles at work in turn."""
    busy = ((ENGINES.index(engine), cycles) for engine, cycles in layer.busy if cycles)
    return [layer.cycles, *chain.from_iterable(busy)]


def _used(kernel: Kernel) -> list[str]:
    """The DRAM tensors of a kernel in the order in which its code names them."""
    moves = (i for i in instructions(kernel.body) if isinstance(i, Load | Store))
    return list(dict.fromkeys(i.tensor for i in moves))


def _buffers(kernel: Kernel, detail: KernelDetail, names: Mapping[str, int]) -> list[list[Any]]:
    """Name, space, address, bytes, slots, tensors loaded and stored, and from and to which place
    among the kernel's nodes it holds something (left out where that is all of them)."""
    held = lives(kernel, detail.nodes) if len(detail.nodes) > 1 else {}
    whole = 0, len(detail.nodes) - 1
    made = []
    for b in detail.buffers:
        moved = [[names[t] for t in each] for each in (b.loaded, b.stored)]
        life = held.get(b.name, whole)
        place = list(life) if life != whole else []
        made.append([b.name, b.space, b.address, b.bytes, b.depth, *moved, *place])
    return made


def _events(events: Sequence[Event]) -> list[int]:
    """Flat triples: opcode, start after the event before, duration."""
    opcodes = {kind.opcode: n for n, kind in enumerate(INSTRUCTIONS)}
    flat: list[int] = []
    before = 0
    for event in events:
        flat += (opcodes[event.opcode], event.start - before, event.end - event.start)
        before = event.start
    return flat


def _listings(kernel: Kernel, detail: KernelDetail, names: Mapping[str, int]) -> list[list[str]]:
    """The lines of a kernel by node; what serves no node goes with the instruction behind it.

    Of a group only the first pass is listed, without the tokens, which only keep its nodes apart,
    and its buffers are called by their number, as in "@3": more lines are alike then.
    """
    found: dict[int, list[str]] = {node: [] for node in detail.nodes}
    group = len(found) > 1
    numbers = {b.name: f'"@{n}"' for n, b in enumerate(kernel.buffers)} if group else {}
    waiting: list[str] = []
    last = before = detail.nodes[0] if detail.nodes else 0
    for line, node, moves in _lines(kernel.body, 0, names, syncs=not group):
        if node is not None and not moves:
            if node < before:
                waiting = []
                break
            before = node
        waiting.append(_WORD.sub(lambda m: numbers.get(_bare(m[0]), m[0]), line))
        if node is not None:
            found[node] += waiting
            last, waiting = node, []
    found.setdefault(last, []).extend(waiting)
    return list(found.values())


_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[A-Za-z_][\w./:-]*', re.ASCII)
"""A name in the text of a program."""


def _bare(word: str) -> str:
    return json.loads(word) if word.startswith('"') else word


def _lines(
    items: Sequence[Item], depth: int, names: Mapping[str, int], syncs: bool
) -> Iterator[tuple[str, int | None, bool]]:
    """Each line of a body, the node it serves, and whether it is a load or a store, which may stand
    ahead of its node or behind it; a DRAM tensor is its number in the kernel, as in "$3"."""
    indent = " " * depth
    for item in items:
        if isinstance(item, Loop):
            yield f"{indent}loop {item.var} {item.trip} {{", None, False
            yield from _lines(item.body, depth + 1, names, syncs)
            yield f"{indent}}}", None, False
        elif isinstance(item, Instruction):
            if isinstance(item, Load | Store):
                item = replace(item, tensor=f"${names[item.tensor]}")
            text = instruction_text(item).rpartition(" #")[0]
            yield indent + text, item.node, isinstance(item, Load | Store)
        elif syncs:
            yield indent + instruction_text(item), None, False


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
