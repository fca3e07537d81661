"""InterGrad's figures: single folds, fully connected layers, whole networks; equal PEs, equal area.

    python benchmarks/intergrad.py [--batch N] [--side S] [--area RATIO] [--executed FORM...]

What is public of Unnikrishnan & Parhi (TCAS-I 2023) are its claims, not its formulas, array
sizes, batch sizes or energies.  So each claim is held against every way of counting here:

    folds     one after the other, or overlapped: loads, drains and skew behind other folds
    sums      partial sums of dX and dW read back over the array's edge, or kept in accumulators
    over      gradients only, or the whole step with its forward GEMMs
    side      32, 64, 128; batch 1, 8, 32; PE of 1 to 1.3 times the area of a weight-stationary one

A network's layers are lowered by im2col (M = C R S).  The first layer has no dX.  At equal area
the baseline's array has a side larger by the square root of the PEs' ratio.  Energy is that of the
MACs and of the words over the array's edges, in the local buffers.

`--executed` compiles the networks' whole training steps for intergrad-128 instead and executes
them with gradients apart and interleaved (minutes each): cycles, bytes and energy as simulated.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import isqrt
from pathlib import Path

import click
import onnx

sys.path.insert(0, str(Path(__file__).parent))

from architectures import densenet, inception_v4
from gemms import CLASSES, Network
from gradient_model import (
    INTERLEAVED,
    SCHEDULES,
    Counting,
    Layer,
    gradient_cost,
    held_results,
    held_weights,
)
from zoo import densenet as densenet_model
from zoo import inception_v4 as inception_v4_model

from ccnn.compiler import CompileOptions, compile_model
from ccnn.compiler.codegen import generate, make_context
from ccnn.compiler.mapper import map_graph
from ccnn.passes.graph import Builder, Graph, Group
from ccnn.targets.machine import Machine, load_machine
from ccnn.targets.simulator import Trace, simulate

SIDES, PIXELS = (16, 32, 64, 128, 256), (1, 16, 32, 64, 128, 256)
NETWORKS = {"inception-v4": inception_v4, "densenet-264": lambda: densenet((6, 12, 64, 48))}
MODELS = {
    "inception-v4": inception_v4_model,
    "densenet-264": lambda: densenet_model("densenet264", (6, 12, 64, 48)),
}
"""The same as ONNX."""
BASES = ("ws+ws", "ws+os", "os+os", "os+ws")
PAPER = {"inception-v4": (0.04, 0.17, 0.12), "densenet-264": (0.27, 0.26, 0.18)}
"""Cycles, memory accesses and energy saved at equal area, against weight-stationary."""
RATIOS = (100, 110, 120, 130)
"""Percent: InterGrad's PE over a weight-stationary one in area; the paper's is not public."""
_PRICES = load_machine("intergrad-128").energy_pj
MAC_PJ, WORD_PJ = _PRICES["mac_16bit"], 2 * _PRICES["lbuf_byte"]


@dataclass(frozen=True)
class Way:
    """One way of counting."""

    counting: Counting
    step: bool
    """The forward GEMMs, too."""
    side: int
    batch: int
    ratio: int
    """Area of a PE in percent."""


def ways(
    sides: Sequence[int] = (32, 64, 128),
    batches: Sequence[int] = (1, 8, 32),
    ratios: Sequence[int] = RATIOS,
) -> Iterator[Way]:
    """All of them."""
    for overlapped, accumulated, step, side, batch, ratio in product(
        (False, True), (False, True), (False, True), sides, batches, ratios
    ):
        yield Way(
            Counting(overlapped=overlapped, accumulated=accumulated), step, side, batch, ratio
        )


def fold_gain(side: int, p: int, drained: bool) -> float:
    """Cycles of a fold of WS dX and one of OS dW over those of the interleaved fold."""
    layer, counting = Layer(p, side, side), Counting(drained=drained)
    both = gradient_cost(layer, side, side, "ws+os", counting).cycles
    # draining the last dW is once a layer, not once a fold
    return both / (gradient_cost(layer, side, side, INTERLEAVED, counting).cycles - side)


def connected_gain(p: int, n: int = 1024, side: int = 128) -> float:
    """Cycles of WS dX and OS dW of a layer with K = M = n over those of the interleaved layer."""
    pair, both = (
        gradient_cost(Layer(p, n, n), side, side, s).cycles for s in (INTERLEAVED, "ws+os")
    )
    return both / pair


@cache
def layers(name: str, batch: int) -> tuple[Layer, ...]:
    """A network's layers, the classifier last."""
    network: Network = NETWORKS[name]()
    convs = [Layer(batch * v.p * v.p, v.k, v.c * v.r * v.s) for v in network.convs]
    return (*convs, Layer(batch, CLASSES, network.outer))


@cache
def cost(
    name: str, schedule: str, side: int, batch: int, counting: Counting, step: bool
) -> tuple[int, int, int]:
    """(cycles, words, MACs) of a network; 'best' takes the best schedule of each layer."""
    cycles = words = macs = 0
    names = tuple(SCHEDULES) if schedule == "best" else (schedule,)
    first, *others = layers(name, batch)
    for layer, many in {first: 1, **Counter(others)}.items():
        if layer is first:
            parts = [min(_first(layer, s, side, counting) for s in names)]
        else:
            found = (gradient_cost(layer, side, side, s, counting) for s in names)
            parts = [min((c.cycles, c.words) for c in found)]
        if step:
            parts.append(held_weights(layer.p, layer.m, layer.k, side, side, counting))
        cycles += many * sum(part[0] for part in parts)
        words += many * sum(part[1] for part in parts)
        macs += many * layer.p * layer.k * layer.m * ((1 if layer is first else 2) + step)
    return cycles, words, macs


def _first(layer: Layer, schedule: str, side: int, counting: Counting) -> tuple[int, int]:
    """dW alone: held results wherever the schedule's dW has them."""
    if SCHEDULES[schedule][1] == "ws":
        return held_weights(layer.k, layer.p, layer.m, side, side, counting)
    return held_results(layer.p, layer.k, layer.m, side, side, counting)


def larger(side: int, ratio: int) -> int:
    """Side of an array of smaller PEs on the same area."""
    return isqrt(side * side * ratio // 100)


def saved(name: str, way: Way, base: str, schedule: str = INTERLEAVED) -> tuple[float, ...]:
    """Parts of cycles, words and energy that a schedule saves over a baseline."""
    rest = way.batch, way.counting, way.step
    cycles, words, macs = cost(name, schedule, way.side, *rest)
    other_cycles, other_words, _ = cost(name, base, larger(way.side, way.ratio), *rest)
    energy = (macs * MAC_PJ + w * WORD_PJ for w in (words, other_words))
    return 1 - cycles / other_cycles, 1 - words / other_words, 1 - next(energy) / next(energy)


def nearest(names: Sequence[str], base: str) -> tuple[float, Way]:
    """(points off, way) of the way whose cycles and words come nearest to the paper's for all."""
    best = None
    for way in ways():
        off = 0.0
        for name in names:
            got = saved(name, way, base)[:2]
            off = max(off, *(abs(a - b) for a, b in zip(got, PAPER[name], strict=False)))
        if best is None or off < best[0]:
            best = off, way
    assert best is not None
    return best


def word_price(name: str, way: Way, base: str) -> float | None:
    """Picojoules of a word at which the energy saved is the paper's; None where none will do."""
    rest = way.batch, way.counting, way.step
    _, words, macs = cost(name, INTERLEAVED, way.side, *rest)
    _, others, _ = cost(name, base, larger(way.side, way.ratio), *rest)
    wanted = PAPER[name][2]
    worth = others - words - wanted * others
    return wanted * macs * MAC_PJ / worth if worth > 0 else None


def _write(line: str = "") -> None:
    sys.stdout.write(line + "\n")


def show_folds() -> None:
    """Gains of a fold, by side and rows."""
    _write("cycles of WS dX + OS dW over interleaved, a fold; without / with the drain of OS")
    _write(f"{'side':>8}" + "".join(f"{f'P = {p}':>13}" for p in PIXELS))
    for side in SIDES:
        cells = (
            f"{fold_gain(side, p, False):.2f} / {fold_gain(side, p, True):.2f}" for p in PIXELS
        )
        _write(f"{side:>8}" + "".join(f"{cell:>13}" for cell in cells))


def show_connected(side: int = 128, n: int = 1024) -> None:
    """A fully connected layer against all baselines."""
    _write(f"\nK = M = {n}, side {side}: cycles / words of each baseline over interleaved")
    _write(f"{'P':>8}" + "".join(f"{base:>14}" for base in BASES))
    for p in (1, 32, 128, 256, 512, 1024, 4096, 16384):
        layer = Layer(p, n, n)
        pair = gradient_cost(layer, side, side, INTERLEAVED)
        costs = (gradient_cost(layer, side, side, base) for base in BASES)
        cells = (f"{c.cycles / pair.cycles:.2f} / {c.words / pair.words:.2f}" for c in costs)
        _write(f"{p:>8}" + "".join(f"{cell:>14}" for cell in cells))
    _write(
        "the paper: 1.4 to 2.2 in cycles, 1.9 in words; regime and baseline are not public.\n"
        f"Against ws+os while P is up to twice the side: {connected_gain(1):.2f} to "
        f"{connected_gain(2 * side):.2f} in cycles.  2.2 is not reached, nor 1.9 in words."
    )


def show_network(name: str, batch: int, side: int, ratio: int) -> None:
    """A network against all baselines."""
    _write(f"\n{name}, batch {batch}, side {side}: cycles / words / energy saved by interleaving")
    _write(f"{'':50}" + "".join(f"{base:>25}" for base in BASES))
    for percent in dict.fromkeys((100, ratio)):
        for way in ways((side,), (batch,), (percent,)):
            cells = (" ".join(f"{100 * x:6.1f}%" for x in saved(name, way, base)) for base in BASES)
            title = f"{_words(way)}, PE {percent / 100:.2f}x"
            _write(f"{title:50}" + "".join(f"{cell:>25}" for cell in cells))
    plain, pair = (cost(name, s, side, batch, Counting(), True)[0] for s in ("best", INTERLEAVED))
    _write(
        f"the best schedule of each layer, folds apart: {plain:,} cycles a step, "
        f"{1 - plain / pair:.1%} fewer than interleaving everywhere"
    )


def show_claims() -> None:
    """The paper's savings, and how near any way of counting comes."""
    _write(
        "\nequal PEs: cycles and words saved, over all ways of counting; the paper: 25 % at most"
    )
    for name, base in product(NETWORKS, ("ws+os", "ws+ws")):
        found = [saved(name, way, base)[:2] for way in ways(ratios=(100,))]
        spans = (f"{100 * min(x):.1f} to {100 * max(x):.1f} %" for x in zip(*found, strict=True))
        _write(f"{name:14} against {base}: " + ", ".join(spans))
    _write("equal area, against weight-stationary: cycles, words, energy saved")
    for name, wanted in PAPER.items():
        _write(f"{name:14} the paper       " + _percents(wanted))
    for names in (*((name,) for name in PAPER), tuple(PAPER)):
        for base in ("ws+ws", "ws+os"):
            off, way = nearest(names, base)
            _write(
                f"nearest way for {' and '.join(names)}, against {base}: side {way.side}, batch "
                f"{way.batch}, PE {way.ratio / 100:.2f}x, {_words(way)}; cycles and words "
                f"{100 * off:.1f} points off at most"
            )
            for name in names:
                price = word_price(name, way, base)
                _write(
                    f"{name:14}                 {_percents(saved(name, way, base))}, the energy "
                    + (f"the paper's at {price:.0f} pJ a word" if price else "at no price of words")
                )
    _write(f"energy: {MAC_PJ:g} pJ a MAC, {WORD_PJ:g} pJ a word, as in the machine files")
    _write("a figure that is points off here is not reached under any of these ways of counting")


def connected_step(p: int, n: int, together: bool) -> Graph:
    """Both gradients of a fully connected layer of p rows and n x n weights."""
    b = Builder("connected")
    dy, x, w = b.input("dy", (p, n)), b.input("x", (p, n)), b.input("w", (n, n))
    dx = b.emit("matmul", [dy, w], trans_a=False, trans_b=False)
    dw = b.emit("matmul", [dy, x], trans_a=True, trans_b=False)
    graph = b.build([dx, dw])
    names = tuple(node.name for node in graph.nodes)
    return replace(graph, groups=(Group(names, interleaved=True),) if together else ())


def executed_connected(p: int, n: int = 1024, ideal: bool = True) -> tuple[Trace, Trace]:
    """The layer's gradients on intergrad-128, apart in their fastest flows and interleaved;
    `ideal`: memory takes no time."""
    machine = load_machine("intergrad-128")
    if ideal:
        machine = replace(machine, dram_bandwidth_gib_s=1e9, dram_latency_cycles=0)
    found = []
    for together in (False, True):
        context = make_context(connected_step(p, n, together), machine, "bfloat16")
        found.append(simulate(generate(context, map_graph(context)), machine))
    return found[0], found[1]


def show_executed_connected(n: int = 1024) -> None:
    """Fully connected layers as executed."""
    _write(
        f"K = M = {n} executed on intergrad-128, apart in the fastest flow of each gradient over"
    )
    _write(
        "interleaved: cycles with ideal memory, cycles with wavecore's, LBUF and GBUF bytes, energy"
    )
    for p in (1, 16, 32, 64, 128, 256, 512, 2048):
        (apart, pair), slow = executed_connected(p, n), executed_connected(p, n, ideal=False)
        figures = (
            apart.cycles / pair.cycles, slow[0].cycles / slow[1].cycles,
            apart.lbuf_bytes / pair.lbuf_bytes, apart.gbuf_bytes / pair.gbuf_bytes,
            apart.energy_pj / pair.energy_pj,
        )  # fmt: skip
        _write(f"P = {p:>5}" + "".join(f"{figure:>8.2f}" for figure in figures))


def executed(
    model: onnx.ModelProto, batch: int, form: str, machine: str | Machine = "intergrad-128"
) -> Trace:
    """A training step with gradients apart ('off'), in a form of interleaving, or 'auto'."""
    options = CompileOptions(target=machine, batch=batch, interleave=form)  # type: ignore[arg-type]
    c = compile_model(model, options)
    return simulate(c.program, c.machine)


def larger_plain(area: float) -> Machine:
    """A weight-stationary machine whose array takes the area of intergrad-128's."""
    side = isqrt(round(area * 128**2))
    return load_machine("wavecore").resized(rows=side, cols=side)


def show_executed(name: str, batch: int, forms: Sequence[str], area: float) -> None:
    """Whole steps as executed, and what each form saves, with equal PEs and with equal area."""
    _write(f"\n{name}, batch {batch}, executed on intergrad-128: the whole step, loads and drains")
    _write("overlapped, memory as on wavecore; saved against gradients apart")
    heads = ("cycles", "array", "LBUF bytes", "GBUF bytes", "DRAM bytes", "energy mJ")
    _write(f"{'':18}" + "".join(f"{head:>24}" for head in heads))
    found = {form: _figures(executed(MODELS[name](), batch, form)) for form in ("off", *forms)}
    for form, figures in found.items():
        _write(f"{form:18}" + _saved(figures, found["off"]))
    plain = larger_plain(area)
    base = _figures(executed(MODELS[name](), batch, "off", plain))
    _write(f"PE {area:.2f}x: against a weight-stationary array of {plain.rows} x {plain.cols}")
    _write(f"{'alone':18}" + _saved(base, base))
    for form in forms:
        _write(f"{form:18}" + _saved(found[form], base))


def _figures(t: Trace) -> tuple[float, ...]:
    array = next(e.busy_cycles for e in t.engines if e.name == "array")
    return t.cycles, array, t.lbuf_bytes, t.gbuf_bytes, t.dram_bytes, t.energy_pj / 1e9


def _saved(figures: Sequence[float], base: Sequence[float]) -> str:
    cells = (f"{x:,.0f} ({1 - x / y:6.1%})" for x, y in zip(figures, base, strict=True))
    return "".join(f"{cell:>24}" for cell in cells)


def _percents(parts: Sequence[float]) -> str:
    return " ".join(f"{100 * part:5.1f}%" for part in parts)


def _words(way: Way) -> str:
    counting = way.counting
    return (
        f"{'overlapped' if counting.overlapped else 'folds apart'}, sums "
        f"{'kept' if counting.accumulated else 'read back'}, "
        f"{'step' if way.step else 'gradients'}"
    )


@click.command()
@click.option("--batch", default=32, type=click.IntRange(min=1))
@click.option("--side", default=128, type=click.IntRange(min=1))
@click.option("--area", default=1.1, type=click.FloatRange(min=1), help="PE over a plain PE.")
@click.option("--executed", "forms", multiple=True, type=click.Choice(("tile", "element", "auto")))
@click.option("--network", "names", multiple=True, type=click.Choice(tuple(MODELS)))
def main(batch: int, side: int, area: float, forms: Sequence[str], names: Sequence[str]) -> None:
    """Print all tables."""
    if forms:
        show_executed_connected()
        for name in names or MODELS:
            show_executed(name, batch, forms, area)
        return
    show_folds()
    show_connected()
    for name in NETWORKS:
        show_network(name, batch, side, round(100 * area))
    show_claims()


if __name__ == "__main__":
    main()
