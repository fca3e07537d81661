"""report.html: the whole report as one page that opens from disk and needs no network.

The page is made of the report and of the program it speaks of: tables stand in the page itself,
charts are drawn by a script of our own from the data of payload.py, which is most of the page and
therefore compressed.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

import jinja2

from ccnn.compiler.report.detail import TENSOR_CLASSES, KernelDetail, kernel_details
from ccnn.compiler.report.fields import TOTALS, quantity
from ccnn.compiler.report.notes import metric_note, metric_rows
from ccnn.compiler.report.payload import (
    class_traffic,
    layer_numbers,
    layer_traffic,
    make_payload,
)
from ccnn.compiler.report.waterfall import waterfall
from ccnn.targets.machine import Machine
from ccnn.targets.program import Program
from ccnn.targets.simulator import Trace

PHASES = ("forward", "loss", "backward", "update")
SCRIPTS = ("core", "table", "charts", "timeline", "detail", "start")
"""Parts of the script, in the order in which they are joined."""


def report_html(
    report: Mapping[str, Any],
    program: Program,
    machine: Machine,
    tilings: Mapping[str, Any] | None = None,
    trace: Trace | None = None,
    details: Sequence[KernelDetail] | None = None,
) -> str:
    """The page of a report, of the program it is about and of the machine that program is for.

    `trace` and `details` are simulated when absent; `tilings` are those of the mapping. Raises
    SimulationError when the program does what the machine cannot.
    """
    if details is None:
        details = kernel_details(program, machine, trace.kernels if trace else ())
    data = make_payload(report, program, details, tilings or {})
    rows = layer_numbers(report, program)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            r=report,
            totals=_totals(report),
            strong=report.get("strong_baseline"),
            waterfall=waterfall(report),
            modes=[mode.name for mode in machine.modes],
            layers=_layers(report, layer_traffic(program, details, rows)),
            traffic=_traffic(class_traffic(program, details)),
            engines=_engines(report),
            classes=TENSOR_CLASSES,
            metrics=metric_rows(),
            note=metric_note,
            q=quantity,
            phases=[p for p in PHASES if any(row["phase"] == p for row in report["layers"])],
            kinds=sorted({row["kind"] for row in report["layers"]}),
            bounds=sorted({row["bound_by"] for row in report["layers"]}),
            style=_part("report.css.j2"),
            script="\n".join(_part(f"report_{name}.js.j2") for name in SCRIPTS),
            data=_packed(data),
        )
    )


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_part),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def _part(name: str) -> str:
    return files("ccnn.compiler.report").joinpath(name).read_text("utf-8")


def _packed(data: Mapping[str, Any]) -> str:
    """JSON, compressed, in letters that cannot end the script element they stand in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _totals(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row for each total: this program, its lower bound, the baselines, and their ratios."""
    strong = report.get("strong_baseline") or {}
    found = []
    for field in TOTALS:
        key = field.key
        value, bound = report["totals"][key], report["bounds"][key]
        baseline = report["baseline"][key]
        why = report["bound_formulas"][key]
        found.append(
            {
                "key": key,
                "title": field.title,
                "note": metric_note(key),
                "value": quantity(key, value),
                "bound": quantity(key, bound) if bound else "",
                "bound_note": f"{why['direction']} {why['formula']}: {why['why']}",
                "ratio": f"{value / bound:.2f}×" if bound else "",
                "baseline": quantity(key, baseline),
                "gain": f"{value / baseline:.2f}×" if baseline else "",
                "strong": quantity(key, strong[key]) if strong else "",
                "over_strong": f"{value / strong[key]:.2f}×" if strong.get(key) else "",
            }
        )
    return found


def _layers(
    report: Mapping[str, Any], by_class: Mapping[int, Mapping[str, int]]
) -> list[dict[str, Any]]:
    """The report's layers with their DRAM bytes and the pieces of their traffic bar."""
    most = max((sum(c.values()) for c in by_class.values()), default=0) or 1
    found = []
    for number, row in enumerate(report["layers"]):
        pieces = []
        for index, name in enumerate(TENSOR_CLASSES):
            size = by_class.get(number, {}).get(name, 0)
            if size:
                pieces.append((index, f"{100 * size / most:.3g}"))
        words = ", ".join(
            f"{name} {quantity('dram_read_bytes', size)}"
            for name, size in sorted(by_class.get(number, {}).items(), key=lambda kv: -kv[1])
            if size
        )
        dram = row["dram_read_bytes"] + row["dram_write_bytes"]
        found.append({**row, "id": number, "dram": dram, "pieces": pieces, "words": words})
    return found


def _traffic(found: Mapping[tuple[str, str], tuple[int, int]]) -> dict[str, Any]:
    """Bytes by tensor class (rows) and phase (columns), with the widths of the bars."""
    phases = [p for p in PHASES if any(phase == p for _, phase in found)]
    rows = []
    for index, name in enumerate(TENSOR_CLASSES):
        cells = [found.get((name, p), (0, 0)) for p in phases]
        read, write = sum(r for r, _ in cells), sum(w for _, w in cells)
        if read + write:
            rows.append(
                {
                    "index": index,
                    "name": name,
                    "cells": [r + w for r, w in cells],
                    "read": read,
                    "write": write,
                    "total": read + write,
                }
            )
    most = max((row["total"] for row in rows), default=0) or 1
    for row in rows:
        row["read_width"] = round(100 * row["read"] / most, 2)
        row["write_width"] = round(100 * row["write"] / most, 2)
    return {"phases": phases, "rows": rows}


def _engines(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Busy and stalled shares of each engine, the longest stall first."""
    cycles = report["totals"]["cycles"] or 1
    found = []
    for engine in report["engines"]:
        stalls = sorted(engine["stalls"].items(), key=lambda item: (-item[1], item[0]))
        stalled = sum(engine["stalls"].values())
        found.append(
            {
                "name": engine["engine"],
                "busy": 100 * engine["busy_cycles"] / cycles,
                "stalled": 100 * stalled / cycles,
                "idle": max(0.0, 100 * (cycles - engine["busy_cycles"] - stalled) / cycles),
                "causes": ", ".join(
                    f"{cause} {100 * n / cycles:.1f} %" for cause, n in stalls if n
                ),
            }
        )
    return found
