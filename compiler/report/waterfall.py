"""The waterfall of a report: what each pass changed, as rows of text and bars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ccnn.compiler.report.fields import quantity
from ccnn.compiler.report.notes import metric_note

_COLUMNS = (
    ("time", "seconds", ("seconds",)),
    ("DRAM", "dram_read_bytes", ("dram_read_bytes", "dram_write_bytes")),
    ("GBUF", "gbuf_bytes", ("gbuf_bytes",)),
    ("energy", "energy_pj", ("energy_pj",)),
)
"""Title, the key whose unit it has, and the totals that are added up."""


def waterfall(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Heads and rows of the waterfall; None for a report without one.

    A cell has its value, the change from the row before in percent, and widths in percent of the
    longest bar of its column: of the bar, of what is gone, and of the part of it that is new.
    """
    steps = report.get("waterfall")
    if not steps:
        return None
    figures = [[_sum(step["totals"], keys) for _, _, keys in _COLUMNS] for step in steps]
    most = [max(column) or 1 for column in zip(*figures, strict=True)]
    rows = []
    for number, (step, values) in enumerate(zip(steps, figures, strict=True)):
        before = figures[number - 1] if number else values
        cells = [
            _cell(column, value, old, top)
            for column, value, old, top in zip(_COLUMNS, values, before, most, strict=True)
        ]
        rows.append({"name": step["name"], "says": step["says"], "cells": cells})
    return {"heads": [(title, _note(title, keys)) for title, _, keys in _COLUMNS], "rows": rows}


def _sum(totals: Mapping[str, Any], keys: tuple[str, ...]) -> float:
    return sum(totals[key] for key in keys)


def _note(title: str, keys: tuple[str, ...]) -> str:
    if len(keys) == 1:
        return metric_note(keys[0])
    return f"{title} [bytes] = {' + '.join(keys)}. Leaves out: the rounding of bursts."


def _cell(
    column: tuple[str, str, tuple[str, ...]], value: float, before: float, top: float
) -> dict[str, Any]:
    title, key, _ = column
    change = 100 * (value - before) / before if before else 0.0
    return {
        "title": title,
        "value": quantity(key, value),
        "change": f"{change:+.1f} %" if abs(change) >= 0.05 else "",
        "width": round(100 * value / top, 2),
        "gone": round(100 * max(0.0, before - value) / top, 2),
        "more": round(100 * max(0.0, value - before) / top, 2),
    }
