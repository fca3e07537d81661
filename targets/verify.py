"""Static proof that a program is safe on a machine, without running it.

Each rule is a function; its docstring is the rule.  No finding means: every address is inside its
buffer, nothing is read before it is written or overwritten while still needed, and the engines
cannot wait for each other forever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ccnn.targets.machine import Machine
from ccnn.targets.program import Program
from ccnn.targets.verify_bounds import bounds, capacity, header, structure
from ccnn.targets.verify_common import Finding
from ccnn.targets.verify_dram import contents, layout
from ccnn.targets.verify_found import found
from ccnn.targets.verify_modes import modes, sums, turns
from ccnn.targets.verify_order import order

__all__ = ["RULES", "Finding", "verify_program"]

Rule = Callable[[Program, Machine], Iterator[Finding]]

RULES: tuple[Rule, ...] = (
    header, structure, capacity, layout, bounds, modes, turns, sums, contents, found, order,
)  # fmt: skip
"""All rules; `header` and `structure` come first because the others rely on them."""


def verify_program(program: Program, machine: Machine) -> list[Finding]:
    """What is unsafe about a program; empty when it is proven safe."""
    for rule in RULES[:2]:
        findings = list(rule(program, machine))
        if findings:
            return findings
    return [finding for rule in RULES[2:] for finding in rule(program, machine)]
