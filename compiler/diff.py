"""`ccnn diff A B`: what changed in meaning between two output folders of `ccnn compile`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.table import Table
from rich.text import Text

from ccnn.compiler.failure import ExitCode, Failure
from ccnn.compiler.files import read_bytes
from ccnn.compiler.lists import print_json
from ccnn.compiler.mapping import Mapping as TilingMap
from ccnn.compiler.mapping import parse_mapping
from ccnn.compiler.report.fields import TOTALS, quantity
from ccnn.compiler.report.load import load_report
from ccnn.compiler.report.show import console_for

JUDGED = ("cycles", "seconds", "dram_read_bytes", "dram_write_bytes", "energy_pj")
"""Totals of which more is worse; those that decide the exit code."""

_LAYER_KEYS = ("cycles", "dram_read_bytes", "dram_write_bytes", "macs", "energy_pj")


@dataclass(frozen=True)
class Change:
    """A figure before and after."""

    key: str
    before: float
    after: float

    @property
    def percent(self) -> float:
        """The change in percent of before; infinite when there was nothing before."""
        if self.before:
            return 100 * (self.after - self.before) / self.before
        return 0.0 if not self.after else float("inf")


@dataclass(frozen=True)
class LayerChange:
    """A layer of which some figure changed."""

    node: str
    phase: str
    kind: str
    changes: tuple[Change, ...]

    def of(self, key: str) -> Change | None:
        """The change of one figure, None when it stayed."""
        return next((c for c in self.changes if c.key == key), None)


@dataclass(frozen=True)
class Difference:
    """Everything that differs in meaning; all empty when nothing does."""

    facts: tuple[tuple[str, str, str], ...]
    """(what, before, after) of model, machine and options."""
    totals: tuple[Change, ...]
    layers: tuple[LayerChange, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    tilings: tuple[tuple[str, str, str], ...]
    """(node, before, after)."""

    def worse(self, threshold: float) -> tuple[Change, ...]:
        """The judged totals that grew by more than `threshold` percent."""
        return tuple(c for c in self.totals if c.key in JUDGED and c.percent > threshold)

    @property
    def nothing(self) -> bool:
        """True when the two mean the same."""
        return not (self.facts or self.totals or self.layers or self.added or self.removed
                    or self.tilings)  # fmt: skip


def compare(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    tilings_before: TilingMap | None = None,
    tilings_after: TilingMap | None = None,
) -> Difference:
    """The difference of two reports and, when given, of the mappings beside them."""
    a, b = ({(r["node"], r["phase"]): r for r in report["layers"]} for report in (before, after))
    layers = []
    for key in [k for k in a if k in b]:
        changes = tuple(
            Change(f, a[key][f], b[key][f]) for f in _LAYER_KEYS if a[key][f] != b[key][f]
        )
        if changes:
            layers.append(LayerChange(*key, b[key]["kind"], changes))
    layers.sort(key=_gravity)
    return Difference(
        tuple(_facts(before, after)),
        tuple(
            Change(f.key, before["totals"][f.key], after["totals"][f.key])
            for f in TOTALS
            if before["totals"][f.key] != after["totals"][f.key]
        ),
        tuple(layers),
        tuple(f"{node} ({phase})" for node, phase in b if (node, phase) not in a),
        tuple(f"{node} ({phase})" for node, phase in a if (node, phase) not in b),
        _tilings(tilings_before, tilings_after),
    )


def _gravity(layer: LayerChange) -> tuple[float, str, str]:
    cycles = layer.of("cycles")
    return -abs(cycles.after - cycles.before) if cycles else 0.0, layer.node, layer.phase


def _facts(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    found = []
    for part in ("model", "machine", "options"):
        for key, value in before[part].items():
            if value != after[part].get(key):
                found.append((f"{part} {key}", str(value), str(after[part].get(key))))
    return found


def _tilings(a: TilingMap | None, b: TilingMap | None) -> tuple[tuple[str, str, str], ...]:
    if a is None or b is None:
        return ()
    names = [n for n in a.tilings if n in b.tilings]
    pairs = [(n, str(a.tilings[n]), str(b.tilings[n])) for n in names]
    return tuple(pair for pair in pairs if pair[1] != pair[2])


def diff_folders(
    a: Path, b: Path, threshold: float, *, as_json: bool, quiet: bool, verbose: bool, out: TextIO
) -> None:
    """Print what changed from folder A to folder B; Failure with exit code 1 when B is worse."""
    found = compare(load_report(a), load_report(b), _mapping(a), _mapping(b))
    worse = found.worse(threshold)
    if as_json:
        print_json(_plain(found, threshold))
    elif not quiet:
        show_difference(found, out, verbose)
    if worse:
        words = ", ".join(f"{c.key} {c.percent:+.2f} %" for c in worse)
        raise Failure(
            ExitCode.FAILED,
            f"{b} is worse than {a} by more than {threshold:g} %: {words}; "
            "raise --threshold if that is intended",
        )


def _mapping(folder: Path) -> TilingMap | None:
    path = folder / "mapping.txt"
    return parse_mapping(read_bytes(path).decode("utf-8", "replace")) if path.exists() else None


def _plain(found: Difference, threshold: float) -> dict[str, Any]:
    return {
        "schema": "ccnn-diff/1",
        "same": found.nothing,
        "threshold_percent": threshold,
        "worse": [c.key for c in found.worse(threshold)],
        **asdict(found),
    }


def show_difference(found: Difference, out: TextIO, verbose: bool = False) -> None:
    """Print a difference as text, the layers that changed most first."""
    console = console_for(out)
    if found.nothing:
        console.print("no difference")
        return
    for what, before, after in found.facts:
        console.print(Text(f"{what}: {before} -> {after}"))
    table = _table("totals", "", "before", "after", "change")
    titles = {f.key: f.title for f in TOTALS}
    for c in found.totals:
        values = quantity(c.key, c.before), quantity(c.key, c.after)
        table.add_row(titles[c.key], *values, _percent(c))
    if found.totals:
        console.print(table)
    for words, names in (("new", found.added), ("gone", found.removed)):
        if names:
            console.print(Text(f"{words}: {', '.join(names)}"))
    _show_layers(found, out, verbose)
    for name, before, after in found.tilings if verbose else found.tilings[:5]:
        console.print(Text(f"tiling of {name}:\n  - {before}\n  + {after}"))
    if not verbose and len(found.tilings) > 5:
        console.print(f"and {len(found.tilings) - 5} more tilings; -v shows them")


def _show_layers(found: Difference, out: TextIO, verbose: bool) -> None:
    if not found.layers:
        return
    shown = found.layers if verbose else found.layers[:10]
    title = f"{len(shown)} of {len(found.layers)} layers that changed"
    table = _table(title, "ONNX node", "phase", "kind", "cycles", "DRAM read", "DRAM write")
    for layer in shown:
        cells = [_percent(layer.of(k)) for k in ("cycles", "dram_read_bytes", "dram_write_bytes")]
        table.add_row(Text(layer.node), layer.phase, Text(layer.kind), *cells)
    console_for(out).print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    left = ("", "ONNX node", "phase", "kind")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    return table


def _percent(change: Change | None) -> str:
    if change is None:
        return "-"
    return "new" if change.percent == float("inf") else f"{change.percent:+.2f} %"
