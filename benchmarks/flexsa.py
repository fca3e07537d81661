"""FlexSA on ResNet-50 at batch 32: PE use, modes, traffic; the paper's rule and the exact mapper.

    python benchmarks/flexsa.py [dense] [0.1] [0.2] [0.3] [--training]

Networks: dense, and as pruned at epoch 90 with a penalty ratio; --training adds means over the
nine intervals of 90 epochs, weighted by MACs.  Two accountings: *ideal*, the one with which
figures of the paper can be recomputed (no DRAM, no fill and drain, waves never cut, every
shift-in a whole side, work shared evenly over the arrays), and *modelled*, with equal parts on
each array, local buffers, fill, drain, reductions and DRAM.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from time import monotonic

sys.path.insert(0, str(Path(__file__).parent))

from resnet50_gemms import EPOCHS, RATIOS, Gemm, dense, pruned, step_gemms

from ccnn.compiler.mapper.array import ArrayMapping, Product, Rules
from ccnn.compiler.mapper.array_search import map_product
from ccnn.targets.machine import load_machine

BATCH = 32
MACHINES = {
    "flexsa-1g1c": "1 x 128",
    "flexsa-1g4c": "4 x 64",
    "flexsa-4g4c": "16 x 32",
    "flexsa-1g1f": "FlexSA",
    "flexsa-4g1f": "4G1F",
}
SHOWN = {**MACHINES, "ccnn-flex": "ccnn-flex"}
IDEAL = Rules(fill_drain=False, ideal_memory=True, whole_shift=True, uncut=True, balanced=True)
MODELLED = Rules()
IDEAL_MEMORY = Rules(ideal_memory=True)
ACCOUNTINGS = (
    ("ideal", IDEAL),
    ("parts, buffers, fill and drain; ideal memory", IDEAL_MEMORY),
    ("modelled, with DRAM", MODELLED),
)
PLAIN = ("flexsa-1g1c", "flexsa-1g4c", "flexsa-4g4c")


@dataclass
class Totals:
    """Sums over the GEMMs of a step on one machine."""

    macs: int = 0
    cycles: int = 0
    words: int = 0
    dram_bytes: int = 0
    open_gaps: int = 0
    """GEMMs whose bound does not meet their cycles."""
    modes: Counter[str] = field(default_factory=Counter)

    def add(self, mapping: ArrayMapping) -> None:
        """Take in one GEMM."""
        self.macs += mapping.product.macs
        self.cycles += mapping.cycles
        self.words += mapping.words.total
        self.dram_bytes += mapping.dram_bytes
        self.open_gaps += mapping.gap > 0
        self.modes.update(mapping.mode_cycles)

    @property
    def utilisation(self) -> float:
        """MACs over 16,384 PEs and cycles."""
        return self.macs / (16384 * self.cycles)


machine_called = cache(load_machine)


@cache
def mapped(sizes: tuple[int, int, int, str], name: str, rules: Rules, mapper: str) -> ArrayMapping:
    """One GEMM, solved once."""
    m, n, k, split = sizes
    paper = split if mapper == "heuristic" else None
    return map_product(Product(m, n, k), machine_called(name), rules, mapper, paper)


def totals(gemms: Iterable[Gemm], name: str, rules: Rules, mapper: str) -> Totals:
    """A step on a machine."""
    found = Totals()
    for gemm in gemms:
        found.add(mapped((gemm.m, gemm.n, gemm.k, gemm.split), name, rules, mapper))
    return found


def network(title: str, epoch: int = 90) -> list[Gemm]:
    """The GEMMs of 'dense', or of a penalty ratio at an epoch."""
    return step_gemms(dense() if title == "dense" else pruned(title, epoch), BATCH)


def training_mean(ratio: str, name: str) -> tuple[float, float]:
    """(utilisation, words over those of one large array) in the ideal accounting over a run."""
    macs = cycles = words = base = 0
    # ten epochs with each network; the last reconfiguration, after epoch 90, trains no more
    for gemms in (network("dense"), *(network(ratio, epoch) for epoch in EPOCHS[:-1])):
        found = totals(gemms, name, IDEAL, "heuristic")
        macs, cycles, words = macs + found.macs, cycles + found.cycles, words + found.words
        base += totals(gemms, "flexsa-1g1c", IDEAL, "heuristic").words
    return macs / (16384 * cycles), words / base


def gains(gemms: Iterable[Gemm], name: str, rules: Rules) -> tuple[float, float, int]:
    """Cycles of the heuristic over the exact mapper's: mean, largest; GEMMs where it was worse."""
    ratios, worse = [], 0
    for g in gemms:
        sizes = (g.m, g.n, g.k, g.split)
        rule, exact = (mapped(sizes, name, rules, m).cycles for m in ("heuristic", "exact"))
        worse += exact > rule
        ratios.append(rule / exact)
    return sum(ratios) / len(ratios), max(ratios), worse


def _row(title: str, cells: Iterable[str]) -> None:
    sys.stdout.write(f"  {title:<26}" + "".join(f"{cell:>11}" for cell in cells) + "\n")


def show(title: str) -> None:
    """The tables of one network."""
    gemms = network(title)
    sys.stdout.write(f"\nResNet-50, {title}, batch {BATCH}, {len(gemms)} GEMMs\n")
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
    sys.stdout.write(" cycles by mode, ideal accounting, heuristic\n")
    for name in SHOWN:
        modes = totals(gemms, name, IDEAL, "heuristic").modes
        if len(modes) > 1:
            shares = " / ".join(f"{100 * c / modes.total():.1f}% {m}" for m, c in modes.items())
            sys.stdout.write(f"  {SHOWN[name]:<26}{shares}\n")
    sys.stdout.write(" words between global and local buffers over those of 1 x 128\n")
    base = totals(gemms, "flexsa-1g1c", IDEAL, "heuristic").words
    for mapper in ("heuristic", "exact"):
        found = [totals(gemms, name, IDEAL, mapper).words / base for name in SHOWN]
        _row(mapper, (f"{x:.3f}x" for x in found))


def show_training() -> None:
    """Means over whole training runs, ideal accounting, heuristic."""
    sys.stdout.write("\nMeans over 90 epochs of pruning, ideal accounting, heuristic\n")
    _row("", MACHINES.values())
    for ratio in RATIOS:
        found = [training_mean(ratio, name) for name in MACHINES]
        _row(f"ratio {ratio}, PE use", (f"{use:.3f}" for use, _ in found))
        _row(f"ratio {ratio}, words", (f"{words:.3f}x" for _, words in found))


def main(arguments: Sequence[str]) -> int:
    """Print the tables of the networks asked for."""
    chosen = [a for a in arguments if a != "--training"] or ["dense", *RATIOS]
    unknown = [a for a in chosen if a not in ("dense", *RATIOS)]
    if unknown:
        sys.stderr.write(f"no network '{unknown[0]}'; there are dense, {', '.join(RATIOS)}\n")
        return 2
    began = monotonic()
    for title in chosen:
        show(title)
    if "--training" in arguments:
        show_training()
    sys.stdout.write(f"\n{mapped.cache_info().currsize} mappings, {monotonic() - began:.1f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
