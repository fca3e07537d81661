"""What the mapping of a GEMM makes buffers and memory do, and the energy of that."""

from __future__ import annotations

from fractions import Fraction

from ccnn.compiler.mapper.array import ArrayMapping, Rules
from ccnn.targets.machine import Machine


def count_actions(mapping: ArrayMapping, machine: Machine, rules: Rules) -> dict[str, int]:
    """How often each row of the machine's energy table is charged, as in simulator/cost.py.

    An operand is written to its local buffer and read from it again, a stationary block in each
    sub-wave's; sums are written, and read back, for each block of depth, and read once to drain.
    What goes through DRAM is written to the global buffer, or read from it, once more.
    Instructions, the vector unit and static power are left out.
    """
    cut, words = mapping.cut, mapping.words
    moved = words.a + words.b
    sums = mapping.product.m * mapping.product.n * cut.split[2]
    if cut.flow.dataflow == "ws":
        modes = {mode.name: mode for mode in machine.array_modes}
        blocks = [(s.count * s.width, run) for s in cut.strips for run in s.runs]
        loaded = sum(w * r.count * r.depth * modes[r.mode].loads for w, r in blocks)
        copied = sum(w * r.count * r.depth * modes[r.mode].sub_waves for w, r in blocks)
        held = words.a if cut.flow.length == 1 else words.b
        moved += held * copied // loaded - held
        # written by each block, read back by all but the first, and drained
        visits = sum(w * r.count * 2 for w, r in blocks)
        sums = sums * visits // sum(strip.count * strip.width for strip in cut.strips)
    return {
        f"mac_{max(16, 8 * rules.word_bytes)}bit": mapping.product.macs,
        "lbuf_byte": 2 * moved * rules.word_bytes,
        "acc_byte": sums * rules.sum_bytes,
        "gbuf_byte": mapping.buffer_bytes + mapping.dram_bytes,
        "dram_byte": mapping.dram_bytes,
    }


def energy_pj(mapping: ArrayMapping, machine: Machine, rules: Rules) -> dict[str, float]:
    """Picojoules by action; what is left out says `count_actions`."""
    actions = count_actions(mapping, machine, rules)
    return {action: machine.energy_pj[action] * count for action, count in actions.items()}


def price(machine: Machine, action: str) -> Fraction:
    """Picojoules of an action, exactly."""
    return Fraction(str(machine.energy_pj.get(action, 0)))


def total_pj(mapping: ArrayMapping, machine: Machine, rules: Rules) -> Fraction:
    """Picojoules of all that is counted, and of static power in all cycles."""
    actions = {**count_actions(mapping, machine, rules), "static_cycle": mapping.cycles}
    return sum((price(machine, a) * count for a, count in actions.items()), Fraction(0))
