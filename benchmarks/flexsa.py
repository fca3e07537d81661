"""FlexSA's tables: PE use, modes, traffic and energy by the paper's rule and the exact mapper.

    python benchmarks/flexsa.py [NETWORK …] [--training] [--no-cache]

Networks: ResNet-50 dense and as pruned at epoch 90 with a penalty ratio (0.1, 0.2, 0.3),
Inception-v4, DenseNet-121, MobileNet-v2 and that with 75 % of its channels; --training adds means
over the nine intervals of 90 epochs of pruning, weighted by MACs.  Three accountings:

    ideal      the one with which figures of the paper can be recomputed: no DRAM, no fill and
               drain, waves never cut, every shift-in a whole side, work shared evenly over arrays
    on chip    equal parts on each array, local buffers, fill and drain; DRAM takes no time
    modelled   that, and reductions of partial sums and DRAM

A depthwise convolution is a GEMM of one column for each channel: it is left out of the tables, as
work of the vector unit, and what it would take on the array is said beside them.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from time import monotonic

sys.path.insert(0, str(Path(__file__).parent))

from architectures import densenet, inception_v4, mobilenet_v2, resnet50
from gemms import Gemm, Network, step_gemms, without_depthwise
from resnet50_gemms import EPOCHS, RATIOS, pruned

from ccnn.compiler.mapper.array import ArrayMapping, Product, Rules
from ccnn.compiler.mapper.array_cache import map_products
from ccnn.compiler.mapper.array_energy import energy_pj
from ccnn.compiler.mapper.array_search import map_product
from ccnn.targets.machine import load_machine

MACHINES = {
    "flexsa-1g1c": "1 x 128",
    "flexsa-1g4c": "4 x 64",
    "flexsa-4g4c": "16 x 32",
    "flexsa-1g1f": "FlexSA",
    "flexsa-4g1f": "4G1F",
}
SHOWN = {**MACHINES, "ccnn-flex": "ccnn-flex"}
OTHERS = ("wavecore", "wavecore-base", "intergrad-32", "intergrad-64", "intergrad-128")
"""Machines on which the exact mapper is held against the rule, too."""
IDEAL = Rules(fill_drain=False, ideal_memory=True, whole_shift=True, uncut=True, balanced=True)
IDEAL_MEMORY = Rules(ideal_memory=True)
MODELLED = Rules()
ACCOUNTINGS = (("ideal", IDEAL), ("on chip", IDEAL_MEMORY), ("modelled", MODELLED))
NETWORKS: dict[str, tuple[Callable[[], Network], int]] = {
    "dense": (resnet50, 32),
    **{ratio: (lambda ratio=ratio: pruned(ratio, 90), 32) for ratio in RATIOS},
    "inception-v4": (inception_v4, 32),
    "densenet-121": (lambda: densenet((6, 12, 24, 16)), 32),
    "mobilenet-v2": (mobilenet_v2, 128),
    "mobilenet-v2-75": (lambda: mobilenet_v2(0.75), 128),
}
"""Network and the batch that FlexSA used; DenseNet is not among its networks."""
MAC = "mac_16bit"
SAVED = 0.28
"""Energy that FlexSA saves over naive splitting, by the paper; its prices are not public."""
PAPER = """\
What the paper says, as far as it is public (*) or recalled by those who read it:
  PE use of 1 x 128, ResNet-50 dense: 0.83; over runs of pruning, weak and strong: 0.69, 0.58
  words against 1 x 128, dense: 4 x 64 1.5x, 16 x 32 2.7x
  * PE use of FlexSA over one large array: +37 %
  * reuse on chip over naive splitting: 1.7x; energy: 28 % less
Why figures here differ: the ideal accounting gives the recalled ones, apart from pruning, where its
runs were stronger than those of the public log (by the work they leave); reuse is that of 4G1F
against 16 x 32; the prices of its energies, the sizes of its local buffers and its pruned
Inception-v4 are not public, so that one is dense here; DenseNet-121 is no network of the paper.
"""


@dataclass
class Totals:
    """Sums over the GEMMs of a step on one machine."""

    pes: int
    macs: int = 0
    cycles: int = 0
    words: int = 0
    dram_bytes: int = 0
    open_gaps: int = 0
    """GEMMs whose bound does not meet their cycles."""
    modes: Counter[str] = field(default_factory=Counter)
    energy: Counter[str] = field(default_factory=Counter)
    """Picojoules by action."""

    def add(self, mapping: ArrayMapping, energy: dict[str, float], count: int) -> None:
        """Take in a GEMM that occurs `count` times."""
        self.macs += count * mapping.product.macs
        self.cycles += count * mapping.cycles
        self.words += count * mapping.words.total
        self.dram_bytes += count * mapping.dram_bytes
        self.open_gaps += mapping.gap > 0
        self.modes.update({k: count * v for k, v in mapping.mode_cycles.items()})
        self.energy.update({k: count * v for k, v in energy.items()})

    @property
    def utilisation(self) -> float:
        """MACs over PEs and cycles."""
        return self.macs / (self.pes * self.cycles)


machine_called = cache(load_machine)


@cache
def mapped(
    gemms: tuple[Gemm, ...], name: str, rules: Rules, mapper: str
) -> tuple[ArrayMapping, ...]:
    """The GEMMs on a machine, each solved once."""
    machine = machine_called(name)
    products = [Product(g.m, g.n, g.k) for g in gemms]
    if mapper == "exact":
        keep = not os.environ.get("CCNN_NO_CACHE")
        return tuple(map_products(products, machine, rules, keep))
    pairs = dict.fromkeys(zip(products, (g.split for g in gemms), strict=True))
    by_rule = {pair: map_product(pair[0], machine, rules, mapper, pair[1]) for pair in pairs}
    return tuple(by_rule[p, g.split] for p, g in zip(products, gemms, strict=True))


@cache
def _totals(gemms: tuple[Gemm, ...], name: str, rules: Rules, mapper: str) -> Totals:
    machine = machine_called(name)
    found = Totals(machine.peak_macs_per_cycle)
    for gemm, mapping in zip(gemms, mapped(gemms, name, rules, mapper), strict=True):
        found.add(mapping, energy_pj(mapping, machine, rules), gemm.count)
    return found


def totals(gemms: Iterable[Gemm], name: str, rules: Rules, mapper: str) -> Totals:
    """A step on a machine."""
    return _totals(tuple(gemms), name, rules, mapper)


def network(title: str, epoch: int | None = None) -> list[Gemm]:
    """The GEMMs of a network's step without depthwise ones; of a ratio at another epoch."""
    build, batch = NETWORKS[title]
    found = build() if epoch is None else pruned(title, epoch)
    return without_depthwise(step_gemms(found, batch))


def training_mean(ratio: str, name: str) -> tuple[float, float]:
    """(utilisation, words over those of one large array) in the ideal accounting over a run."""
    runs = []
    # ten epochs with each network; the last reconfiguration, after epoch 90, trains no more
    for gemms in (network("dense"), *(network(ratio, epoch) for epoch in EPOCHS[:-1])):
        at, base = (totals(gemms, n, IDEAL, "heuristic") for n in (name, "flexsa-1g1c"))
        runs.append((at.macs, at.pes * at.cycles, at.words, base.words))
    macs, slots, words, base_words = (sum(column) for column in zip(*runs, strict=True))
    return macs / slots, words / base_words


def gains(gemms: Iterable[Gemm], name: str, rules: Rules) -> tuple[float, float, int]:
    """Cycles of the heuristic over the exact mapper's: mean, largest; GEMMs where it was worse."""
    rule, exact = (mapped(tuple(gemms), name, rules, m) for m in ("heuristic", "exact"))
    ratios = [r.cycles / e.cycles for r, e in zip(rule, exact, strict=True)]
    return sum(ratios) / len(ratios), max(ratios), sum(ratio < 1 for ratio in ratios)


def savings(gemms: Iterable[Gemm], flexible: str, naive: str) -> tuple[float, float, float]:
    """(words of naive splitting over FlexSA's; energy saved; pJ of a MAC that make it SAVED)."""
    a, b = (totals(gemms, name, MODELLED, "heuristic") for name in (flexible, naive))
    difference, moved = b.energy.total() - a.energy.total(), b.energy.total() - b.energy[MAC]
    mac = (difference / SAVED - moved) / b.macs
    return b.words / a.words, difference / b.energy.total(), mac


def _row(title: str, cells: Iterable[str]) -> None:
    sys.stdout.write(f"  {title:<26}" + "".join(f"{cell:>11}" for cell in cells) + "\n")


def show(title: str) -> None:
    """The tables of one network."""
    gemms, batch = network(title), NETWORKS[title][1]
    words = "ResNet-50, " if title in ("dense", *RATIOS) else ""
    sys.stdout.write(f"\n{words}{title}, batch {batch}, {len(gemms)} GEMMs\n")
    _row("", SHOWN.values())
    for words, rules in ACCOUNTINGS:
        sys.stdout.write(f" PE use, {words}\n")
        for mapper in ("heuristic", "exact"):
            found = [totals(gemms, name, rules, mapper) for name in SHOWN]
            _row(mapper, (f"{t.utilisation:.3f}" for t in found))
        _row("GEMMs not proven", (str(t.open_gaps) for t in found))
        gained = [gains(gemms, name, rules) for name in SHOWN]
        _row("gain, mean", (f"{mean:.3f}x" for mean, _, _ in gained))
        _row("gain, largest", (f"{most:.2f}x" for _, most, _ in gained))
        _row("exact is worse", (str(worse) for _, _, worse in gained))
    sys.stdout.write(" words between global and local buffers over those of 1 x 128, ideal\n")
    base = totals(gemms, "flexsa-1g1c", IDEAL, "heuristic").words
    for mapper in ("heuristic", "exact"):
        found = [totals(gemms, name, IDEAL, mapper).words / base for name in SHOWN]
        _row(mapper, (f"{x:.3f}x" for x in found))
    show_energy(gemms)
    show_modes(gemms)
    show_others(gemms)
    show_depthwise(title)


def show_energy(gemms: Sequence[Gemm]) -> None:
    """Energy by part, and what FlexSA saves over naive splitting."""
    sys.stdout.write(" energy in mJ, modelled, heuristic\n")
    found = [totals(gemms, name, MODELLED, "heuristic").energy for name in SHOWN]
    for action in found[0]:
        _row(action, (f"{energy[action] / 1e9:.0f}" for energy in found))
    _row("sum", (f"{energy.total() / 1e9:.0f}" for energy in found))
    for flexible, naive in (("flexsa-1g1f", "flexsa-1g4c"), ("flexsa-4g1f", "flexsa-4g4c")):
        reuse, saved, mac = savings(gemms, flexible, naive)
        sys.stdout.write(
            f"  {MACHINES[flexible]} against {MACHINES[naive]}: words {reuse:.2f}x fewer, energy "
            f"{saved:.1%} less; {SAVED:.0%} less "
            + (f"if a MAC took {mac:.2f} pJ\n" if mac > 0 else "at no price of a MAC\n")
        )


def show_modes(gemms: Sequence[Gemm]) -> None:
    """Shares of the modes."""
    sys.stdout.write(" cycles by mode, ideal, heuristic\n")
    for name in SHOWN:
        modes = totals(gemms, name, IDEAL, "heuristic").modes
        if len(modes) > 1:
            shares = " / ".join(f"{100 * c / modes.total():.1f}% {m}" for m, c in modes.items())
            sys.stdout.write(f"  {SHOWN[name]:<26}{shares}\n")


def show_others(gemms: Sequence[Gemm]) -> None:
    """The exact mapper on machines that are not FlexSA's."""
    for name in OTHERS:
        mean, most, worse = gains(gemms, name, MODELLED)
        rule, exact = (totals(gemms, name, MODELLED, m) for m in ("heuristic", "exact"))
        sys.stdout.write(
            f" {name}, modelled: PE use {rule.utilisation:.3f}, exact {exact.utilisation:.3f}; "
            f"not proven {exact.open_gaps}, gain {mean:.3f}x to {most:.2f}x, worse {worse}\n"
        )


def show_depthwise(title: str) -> None:
    """PE use with one GEMM for each channel of a depthwise convolution."""
    build, batch = NETWORKS[title]
    gemms = step_gemms(build(), batch)
    if any(gemm.count > 1 for gemm in gemms):
        sys.stdout.write(" PE use, ideal, with depthwise convolutions on the array\n")
        _row(
            "heuristic", (f"{totals(gemms, n, IDEAL, 'heuristic').utilisation:.3f}" for n in SHOWN)
        )


def show_training() -> None:
    """Means over whole training runs, ideal accounting, heuristic."""
    sys.stdout.write("\nResNet-50, means over 90 epochs of pruning, ideal, heuristic\n")
    _row("", MACHINES.values())
    for ratio in RATIOS:
        found = [training_mean(ratio, name) for name in MACHINES]
        _row(f"ratio {ratio}, PE use", (f"{use:.3f}" for use, _ in found))
        _row(f"ratio {ratio}, words", (f"{words:.3f}x" for _, words in found))


def show_gain() -> None:
    """PE use of FlexSA over one large array, over the networks that FlexSA was measured with."""
    sys.stdout.write("\nPE use over that of 1 x 128, ideal, heuristic\n")
    flexible = ("flexsa-1g1f", "flexsa-4g1f")
    _row("", (MACHINES[name] for name in flexible))
    over: dict[str, list[float]] = {name: [] for name in flexible}
    for title in ("0.2", "0.3", "inception-v4", "mobilenet-v2", "mobilenet-v2-75"):
        base = totals(network(title), "flexsa-1g1c", IDEAL, "heuristic").utilisation
        for name in flexible:
            at = totals(network(title), name, IDEAL, "heuristic").utilisation
            over[name].append(at / base - 1)
        _row(title, (f"{over[name][-1]:+.1%}" for name in flexible))
    _row("mean", (f"{sum(column) / len(column):+.1%}" for column in over.values()))


def main(arguments: Sequence[str]) -> int:
    """Print the tables of the networks asked for."""
    chosen = [a for a in arguments if not a.startswith("--")] or list(NETWORKS)
    unknown = [a for a in arguments if a not in (*NETWORKS, "--training", "--no-cache")]
    if unknown:
        sys.stderr.write(f"'{unknown[0]}' is none of {', '.join(NETWORKS)}\n")
        return 2
    if "--no-cache" in arguments:
        os.environ["CCNN_NO_CACHE"] = "1"
    began = monotonic()
    sys.stdout.write(PAPER)
    for title in chosen:
        show(title)
    if len(chosen) == len(NETWORKS):
        show_gain()
    if "--training" in arguments:
        show_training()
    sys.stdout.write(f"\n{monotonic() - began:.1f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
