"""Mini-batch serialization and what goes beyond it: tables of executed programs.

    python benchmarks/mbs.py [PART...] [--net NAME...] [--gbuf MIB...] [--save FILE.json]
    python benchmarks/mbs.py --show FILE.json

    table    Lym et al. 2019: networks x schedules x buffer sizes, beside the cross-check model
    speed    the same authors' performance and energy, against the conventional machine
    blocks   Wang, Hao, Li 2020: batch norms restructured into their neighbours, exact norm
    beyond   what `ccnn compile` chooses, beside its goals
    time     cycles at 300 GiB/s against those in which the array works (array x), and against those
             of the same program where DRAM and the vector unit take no time (alone x)

Every figure is counted by the simulator from a program that the verifier has proven safe: one core
of wavecore, bfloat16, batch 32 (AlexNet 64), SGD.  `x` columns are fractions of the conventional
schedule (exact norm, activations fused with the norms and sums in front of them); `strong` is the
fraction of one whose norms, activations and sums are also made where the layer behind them reads.
Rows appear as they are measured; all parts take hours, `--net resnet50 --gbuf 10` minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from schedules import (
    DTYPE,
    MIB,
    Executed,
    Schedule,
    batch_of,
    execute,
    lowered,
    model,
    proven_and_executed,
)
from zoo import NETWORKS

from ccnn.compiler.choose import TILES
from ccnn.compiler.driver import CompileOptions, compile_model
from ccnn.passes.fuse_layers import FuseLayers
from ccnn.passes.recompute import MACS_PER_BYTE, Recompute
from ccnn.passes.serialize_minibatch import SerializeMinibatch
from ccnn.targets.machine import load_machine
from ccnn.targets.simulator import simulate

PUBLISHED = ("resnet50", "resnet101", "resnet152", "inception_v3", "inception_v4", "alexnet")
BUFFERS = (5, 10, 20, 30, 40)
MODEL = {  # IL, MBS-FS, MBS1, MBS2 by an independent model of the method's description
    ("resnet50", 5): (0.995, 0.780, 0.389, 0.321), ("resnet50", 10): (0.967, 0.464, 0.352, 0.271),
    ("resnet50", 20): (0.885, 0.389, 0.331, 0.243), ("resnet50", 30): (0.749, 0.359, 0.322, 0.237),
    ("resnet50", 40): (0.700, 0.344, 0.321, 0.228),
    ("resnet101", 5): (0.997, 0.855, 0.401, 0.338), ("resnet101", 10): (0.935, 0.488, 0.354, 0.275),
    ("resnet101", 20): (0.827, 0.401, 0.332, 0.242),
    ("resnet101", 30): (0.596, 0.366, 0.319, 0.237),
    ("resnet101", 40): (0.564, 0.348, 0.318, 0.224),
    ("resnet152", 5): (0.998, 0.832, 0.397, 0.334), ("resnet152", 10): (0.931, 0.480, 0.351, 0.271),
    ("resnet152", 20): (0.810, 0.396, 0.331, 0.238),
    ("resnet152", 30): (0.571, 0.362, 0.317, 0.236),
    ("resnet152", 40): (0.530, 0.346, 0.316, 0.221),
    ("inception_v3", 5): (0.967, 0.864, 0.456, 0.377),
    ("inception_v3", 10): (0.820, 0.864, 0.418, 0.321),
    ("inception_v3", 20): (0.696, 0.537, 0.401, 0.296),
    ("inception_v3", 30): (0.571, 0.475, 0.391, 0.280),
    ("inception_v3", 40): (0.551, 0.444, 0.390, 0.287),
    ("inception_v4", 5): (0.979, 0.871, 0.508, 0.437),
    ("inception_v4", 10): (0.865, 0.871, 0.460, 0.339),
    ("inception_v4", 20): (0.779, 0.558, 0.429, 0.291),
    ("inception_v4", 30): (0.707, 0.498, 0.425, 0.278),
    ("inception_v4", 40): (0.567, 0.469, 0.417, 0.275),
    ("alexnet", 5): (0.992, 7.26, 0.794, 0.794), ("alexnet", 10): (0.979, 3.39, 0.717, 0.717),
    ("alexnet", 20): (0.881, 1.73, 0.654, 0.654), ("alexnet", 30): (0.822, 1.18, 0.709, 0.709),
    ("alexnet", 40): (0.749, 1.18, 0.654, 0.654),
}  # fmt: skip
BANDWIDTHS = {"HBM2": 150.0, "LPDDR4": 119.6, "HBM2 x2": 300.0}
"""GiB/s of one core of two."""
PAPER_BLOCKS = {"resnet50": -0.33, "inception_v3": -0.22, "densenet121": -0.31}
GOALS = {  # by norm and recompute: the highest fraction of the conventional traffic
    "resnet50": {"group layers": 0.155, "exact cheap": 0.345, "exact layers": 0.24},
    "resnet101": {"group layers": 0.18},
    "resnet152": {"group layers": 0.18},
    "inception_v3": {"group layers": 0.145, "exact cheap": 0.28, "exact layers": 0.225},
    "inception_v4": {"group layers": 0.165},
    "densenet121": {
        "group cheap": 0.055, "group layers": 0.032, "exact cheap": 0.235, "exact layers": 0.21,
    },
    "mobilenet_v2": {
        "group cheap": 0.12, "group layers": 0.02, "exact cheap": 0.265, "exact layers": 0.15,
    },
    "vgg16": {"group layers": 0.35},
    "alexnet": {"group cheap": 0.69},
}  # fmt: skip

Row = dict[str, object]


def _alone(buffer: int, reserved: int) -> None:
    """The conventional schedule: no groups."""


def _serialize(buffer: int, reserved: int, **options: object) -> SerializeMinibatch:
    # a sum may take the place of one of its operands, as the method provides
    return SerializeMinibatch(buffer, reserved, keep=False, in_place=True, **options)  # type: ignore[arg-type]


def published(batch: int) -> dict[str, Schedule]:
    """The paper's schedules: data between two layers stays when all of the batch fits (IL); one
    group (FS); groups by greedy merging, without and with reuse between branches."""
    return {
        "IL": partial(_serialize, mode="best", sub_batch=batch, rows=False),
        **{m: partial(_serialize, mode=m, method="greedy") for m in ("full", "mbs1", "mbs2")},
    }


def blocks() -> dict[str, Schedule]:
    """A layer with the norm and activation in front (BRC), and with the statistics of the norm
    behind it as well (BRCB)."""
    return {
        "BRC": partial(FuseLayers, next_norm=False, merge_moments=True),
        "BRCB": partial(FuseLayers, merge_moments=True),
    }


@lru_cache(maxsize=4)
def usual(name: str, gbuf: int, target: str = "wavecore", bandwidth: float = 150.0) -> Executed:
    """The conventional schedule."""
    return execute(lowered(name, "exact"), machine(gbuf, target, bandwidth), _alone)


@lru_cache(maxsize=4)
def strong(name: str, gbuf: int) -> Executed:
    """The conventional schedule with element-wise layers made where they are read."""
    return execute(lowered(name, "exact"), machine(gbuf), blocks()["BRC"])


def machine(gbuf: int, target: str = "wavecore", bandwidth: float = 150.0):
    """A core with a buffer of so many MiB and so many GiB/s of DRAM."""
    return replace(load_machine(target), gbuf_bytes=gbuf * MIB, dram_bandwidth_gib_s=bandwidth)


def against(
    name: str, gbuf: int, what: str, run: Executed, base: Executed, most: Executed | None = None,
    **more: object,
) -> Row:  # fmt: skip
    """A row of results; `most` is the strong baseline."""
    return {
        "net": name, "gbuf_mib": gbuf, "schedule": what,
        "dram_x": round(run.trace.dram_bytes / base.trace.dram_bytes, 4),
        "strong_x": round(run.trace.dram_bytes / most.trace.dram_bytes, 4) if most else None,
        "cycles_x": round(run.trace.cycles / base.trace.cycles, 4),
        "energy_x": round(run.trace.energy_pj / base.trace.energy_pj, 4),
        "macs_x": round(run.trace.macs / base.trace.macs, 4),
        **more, **run.figures,
    }  # fmt: skip


def table(names: list[str], buffers: list[int], only: Sequence[str] = ()) -> Iterator[Row]:
    """Networks, schedules (`only` these) and buffers of the paper, with group norm."""
    for gbuf in buffers or BUFFERS:
        for name in names or PUBLISHED:
            base, most = usual(name, gbuf), strong(name, gbuf)
            yield against(name, gbuf, "baseline", base, base, most)
            expected = MODEL.get((name, gbuf), (None,) * 4)
            graph = lowered(name, "group")
            pairs = zip(published(batch_of(name)).items(), expected, strict=True)
            for (what, schedule), known in pairs:
                if only and what not in only:
                    continue
                run = execute(graph, machine(gbuf), schedule)
                yield against(name, gbuf, what, run, base, most, model_x=known)


def speed(names: list[str], buffers: list[int]) -> Iterator[Row]:
    """Cycles and energy of MBS2 on wavecore against the baseline on wavecore-base."""
    for gbuf in buffers or (10,):
        for name in names or PUBLISHED:
            for memory, bandwidth in BANDWIDTHS.items():
                base = usual(name, gbuf, "wavecore-base", bandwidth)
                yield against(name, gbuf, f"baseline {memory}", base, base)
                schedule = published(batch_of(name))["mbs2"]
                to = machine(gbuf, bandwidth=bandwidth)
                run = execute(lowered(name, "group"), to, schedule)
                yield against(name, gbuf, f"mbs2 {memory}", run, base)


def restructured(names: list[str], buffers: list[int]) -> Iterator[Row]:
    """Blocks of batch norm, activation and convolution, numbers unchanged."""
    for gbuf in buffers or (10,):
        for name in names or PAPER_BLOCKS:
            base = usual(name, gbuf)
            yield against(name, gbuf, "baseline", base, base)
            again = Recompute("cheap")(lowered(name, "exact"))
            for what, schedule in blocks().items():
                for graph, with_ in ((lowered(name, "exact"), ""), (again, " recompute")):
                    run = execute(graph, machine(gbuf), schedule)
                    paper = 1 + PAPER_BLOCKS[name] if name in PAPER_BLOCKS else None
                    yield against(name, gbuf, what + with_, run, base, paper_x=paper)


def beyond(names: list[str], buffers: list[int], only: Sequence[str] = ()) -> Iterator[Row]:
    """`ccnn compile --serialize best` with either norm and each kind of recomputation (`only`
    these, as 'group layers'); 64 is the --macs-per-byte of a dearer one."""
    for gbuf in buffers or (10,):
        for name in names or GOALS:
            base, most = usual(name, gbuf), strong(name, gbuf)
            yield against(name, gbuf, "baseline", base, base, most)
            for norm in ("group", "exact"):
                for anew in ("none", "cheap", "layers", "layers 64"):
                    kind = f"{norm} {anew}"
                    if only and kind not in only:
                        continue
                    run = compiled(name, gbuf, norm, anew)
                    goal = GOALS.get(name, {}).get(kind.removesuffix(" 64"))
                    yield against(name, gbuf, f"best {kind}", run, base, most, goal_x=goal)


def compiled(name: str, gbuf: int, norm: str, anew: str) -> Executed:
    """What the compiler makes of a network when asked for its best, with the least room for tiles
    that it tries.  Gradients of parameters are no results."""
    began = time.process_time()
    again, *price = anew.split()
    options = CompileOptions(
        target=machine(gbuf), batch=batch_of(name), dtype=DTYPE, norm=norm, serialize="best",
        recompute=again, tiles=TILES[0], gradients=False,
        macs_per_byte=float(price[0]) if price else MACS_PER_BYTE,
    )  # type: ignore[arg-type]  # fmt: skip
    c = compile_model(model(name), options)
    trace = proven_and_executed(c.program, c.machine)
    return Executed(c.lowered, trace, time.process_time() - began)


TIMED = ("resnet50", "resnet101", "inception_v3", "vgg16")


def timed(names: list[str], buffers: list[int], only: Sequence[str] = ()) -> Iterator[Row]:
    """Schedules that save time (`only` these norms and recomputations, as 'group none'): everything
    but the array's own work should hide behind it."""
    fast = BANDWIDTHS["HBM2 x2"]
    for gbuf in buffers or (10,):
        for name in names or TIMED:
            base = usual(name, gbuf, bandwidth=fast)
            yield against(name, gbuf, "baseline", base, base, array_x=beside_array(base))
            for norm in ("group", "exact"):
                for anew in ("none", "cheap"):
                    if only and f"{norm} {anew}" not in only:
                        continue
                    run, alone = in_halves(name, gbuf, norm, anew, fast)
                    xs = {
                        "array_x": beside_array(run),
                        "alone_x": round(run.trace.cycles / alone, 4),
                        "alone_cycles": alone,
                    }
                    what = f"best {norm} {anew} in halves"
                    yield against(name, gbuf, what, run, base, **xs)


def in_halves(name: str, gbuf: int, norm: str, anew: str, bandwidth: float) -> tuple[Executed, int]:
    """A serialized step whose forward groups go in halves, and the cycles of the same program
    where DRAM and the vector unit take no time: those of the array and what feeds and drains it."""
    began = time.process_time()
    options = CompileOptions(
        target=machine(gbuf, bandwidth=bandwidth), batch=batch_of(name), dtype=DTYPE, norm=norm,
        serialize="best", recompute=anew, tiles=TILES[1], halves=True, gradients=False,
    )  # type: ignore[arg-type]  # fmt: skip
    c = compile_model(model(name), options)
    run = Executed(
        c.lowered, proven_and_executed(c.program, c.machine), time.process_time() - began
    )
    free = replace(
        c.machine, dram_bandwidth_gib_s=1e9, dram_latency_cycles=0, lanes=2**50,
        vector_startup_cycles=0,
    )  # fmt: skip
    return run, simulate(c.program, free).cycles


def beside_array(run: Executed) -> float:
    """Cycles over those in which the array takes in a row."""
    busy = {e.name: e.busy_cycles for e in run.trace.engines}
    return round(run.trace.cycles / busy["array"], 4)


PARTS: dict[str, Callable[[list[str], list[int]], Iterator[Row]]] = {
    "table": table, "speed": speed, "blocks": restructured, "beyond": beyond,
    "time": timed,
}  # fmt: skip
COLUMNS = (
    "dram_x", "strong_x", "model_x", "paper_x", "goal_x", "cycles_x", "array_x", "alone_x",
    "energy_x", "macs_x",
)  # fmt: skip
HEAD = (
    "| net | MiB | schedule | DRAM GiB | DRAM x | strong | model | paper | goal | cycles x "
    "| array x | alone x | energy x | MACs x | groups | CPU s |\n"
    f"| --- | ---: | --- {'| ---: ' * 13}|\n"
)


def show(row: Row) -> str:
    """A line of the printed table."""
    cells = [row["net"], row["gbuf_mib"], row["schedule"], f"{row['dram_bytes'] / 2**30:.3f}"]  # type: ignore[operator]
    cells += ["-" if row.get(c) is None else f"{row[c]:.3f}" for c in COLUMNS]
    return "| " + " | ".join(str(c) for c in [*cells, row["groups"], row["seconds"]]) + " |"


def save(path: Path, part: str, rows: list[Row]) -> None:
    """Put the rows into the file, in place of older ones for the same case; one row a line."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    old = found.get(part, [])

    def key(row: Row) -> tuple[object, ...]:
        return row["net"], row["gbuf_mib"], row["schedule"]

    merged = {key(r): r for r in (*old, *rows)}
    found[part] = sorted(merged.values(), key=lambda r: (r["gbuf_mib"], str(r["net"])))
    parts = (
        f'"{p}": [\n' + ",\n".join(json.dumps(r) for r in found[p]) + "\n]" for p in sorted(found)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def tables(path: Path) -> str:
    """The tables of the rows kept in a file."""
    found = json.loads(path.read_text(encoding="utf-8"))
    parts = [p for p in PARTS if p in found]
    return "\n".join(f"{p}\n\n{HEAD}" + "".join(show(r) + "\n" for r in found[p]) for p in parts)


def main(arguments: list[str]) -> int:
    """Print the tables asked for, row by row."""
    parser = argparse.ArgumentParser(description="executed tables of serialized training steps")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--net", action="append", default=[], metavar="NAME",
                        help=f"{', '.join(NETWORKS)} or an ONNX file; again for more")  # fmt: skip
    parser.add_argument("--gbuf", action="append", default=[], type=int, metavar="MIB")
    parser.add_argument("--only", action="append", default=[], metavar="SCHEDULE",
                        help="of the table: IL, full, mbs1, mbs2; of time and beyond: "
                        "'group none', ..., 'exact cheap'; again for more")  # fmt: skip
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="also keep the rows there")
    parser.add_argument("--show", type=Path, metavar="FILE.json", help="only print rows kept there")
    asked = parser.parse_args(arguments)
    for name in asked.parts:
        if name not in PARTS:
            parser.error(f"no part '{name}'; there are {', '.join(PARTS)}")
    for name in asked.net:
        if name not in NETWORKS and not Path(name).exists():
            parser.error(f"no network '{name}'; there are {', '.join(NETWORKS)}, or name a file")
    if asked.show:
        sys.stdout.write(tables(asked.show))
        return 0
    for part in asked.parts or PARTS:
        sys.stdout.write(f"\n{part}\n\n{HEAD}")
        measure = PARTS[part]
        if part in ("table", "time", "beyond"):
            measure = partial(measure, only=asked.only)
        for row in measure(asked.net, asked.gbuf):
            sys.stdout.write(show(row) + "\n")
            sys.stdout.flush()
            if asked.save:
                save(asked.save, part, [row])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
