"""What every number of a report means: its unit and its formula, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SCHEMA_VERSION = 1
"""Raised when a field changes its meaning or goes; new fields do not raise it."""


@dataclass(frozen=True)
class Field:
    """One figure: its key in report.json, title on the screen, unit and formula."""

    key: str
    title: str
    unit: str
    formula: str


TOTALS = (
    Field("cycles", "cycles", "cycles", "when the last engine has finished the last instruction"),
    Field("seconds", "time", "s", "cycles / (clock_ghz * 1e9)"),
    Field(
        "macs",
        "MACs",
        "MAC",
        "sum of m * n * k over waves of the array; what the lanes multiply are vector operations",
    ),
    Field("dram_read_bytes", "DRAM read", "bytes", "sum over LD of the bytes inside the tensor"),
    Field("dram_write_bytes", "DRAM write", "bytes", "sum over ST of the bytes inside the tensor"),
    Field("gbuf_bytes", "GBUF traffic", "bytes", "bytes read from plus written to the GBUF"),
    Field("lbuf_bytes", "LBUF traffic", "bytes", "bytes read and written, LBUF_V and LBUF_H"),
    Field("energy_pj", "energy", "pJ", "sum over actions of count * energy of the action"),
    Field("pe_utilisation", "PE utilisation", "1", "macs / (cycles * PEs of all arrays)"),
    Field("program_bytes", "program", "bytes", "size of program.bin"),
)

LAYER_TOTALS = tuple(f for f in TOTALS if f.key != "program_bytes")

LAYER_EXTRAS = (
    Field("instructions", "instructions", "1", "instructions executed, loops counted in full"),
    Field("share", "share", "1", "cycles of the layer / cycles of the step"),
    Field("bound_by", "bound by", "text", "the engine busy for most cycles of the layer"),
    Field(
        "bound_share", "of it", "1", "busy cycles of that engine / cycles of the layer; at most 1"
    ),
)


def field_table() -> dict[str, Any]:
    """Key to unit and formula, for report.json."""
    return {f.key: {"unit": f.unit, "formula": f.formula} for f in (*TOTALS, *LAYER_EXTRAS)}


def quantity(key: str, value: float) -> str:
    """A figure as a person reads it, with its unit.

    >>> quantity("dram_read_bytes", 3 * 2**20)
    '3.00 MiB'
    """
    if key in ("pe_utilisation", "share", "bound_share"):
        return f"{100 * value:.1f} %"
    if key == "seconds":
        return _scaled(value, (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)))
    if key == "energy_pj":
        return _scaled(value, (("J", 1e12), ("mJ", 1e9), ("uJ", 1e6), ("nJ", 1e3), ("pJ", 1.0)))
    if key.endswith("_bytes"):
        steps = (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10))
        return _scaled(value, steps) if value >= 1024 else f"{value:.0f} B"
    if key == "macs":
        steps = (("TMAC", 1e12), ("GMAC", 1e9), ("MMAC", 1e6), ("kMAC", 1e3))
        return _scaled(value, steps) if value >= 1000 else f"{value:.0f} MAC"
    return f"{value:,.0f}"


def _scaled(value: float, steps: tuple[tuple[str, float], ...]) -> str:
    """Three digits and the largest unit that leaves something before the point."""
    unit, size = next((step for step in steps if value >= step[1]), steps[-1])
    scaled = value / size
    digits = 2 if scaled < 10 else 1 if scaled < 100 else 0
    return f"{scaled:,.{digits}f} {unit}"
