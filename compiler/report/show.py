"""A report as a screenful of text: machine, assumptions, totals against bounds, worst layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ccnn.compiler.report.fields import TOTALS, quantity
from ccnn.compiler.report.waterfall import waterfall

_WIDTH = 100
"""Columns when the output is no terminal."""
_NOTES = 3
_KIND_WIDTH = 14
_NAME_WIDTH = 28
"""Columns for a node's name; its end tells more than its beginning."""


def show_report(report: Mapping[str, Any], out: TextIO, verbose: bool = False) -> None:
    """Print a report; `verbose` shows every layer, engine and bound instead of the worst few."""
    console = console_for(out)
    _heading(console, report)
    _assumed(console, report["assumed_defaults"])
    _notes(console, report["notes"], verbose)
    if "choice" in report:
        _choice(console, report["choice"], verbose)
    console.print(_totals_table(report))
    if verbose:
        console.print(_bounds_table(report))
    steps = waterfall(report)
    if steps:
        console.print(_waterfall_table(steps))
    console.print(_layers_table(report, verbose))
    console.print(_engines_table(report["engines"], report["totals"]["cycles"]))
    if verbose:
        for sentence in report["not_modelled"]:
            console.print(Text(f"not modelled: {sentence}"))
    elif report["not_modelled"]:
        console.print(f"not modelled: {len(report['not_modelled'])} things; -v lists them")


def show_trace(figures: Mapping[str, Any], out: TextIO, verbose: bool = False) -> None:
    """Print the figures of a simulated program, which has neither bounds nor baseline."""
    console = console_for(out)
    _machine_line(console, figures["machine"], f"{figures['program']} ")
    table = Table(title="totals", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("", justify="right")
    for field in TOTALS:
        table.add_row(field.title, quantity(field.key, figures["totals"][field.key]))
    console.print(table)
    console.print(_layers_table(figures, verbose))
    console.print(_engines_table(figures["engines"], figures["totals"]["cycles"]))


class _Console(Console):
    """A console that leaves a closed pipe to the command, which knows how to end."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console_for(out: TextIO) -> Console:
    """A console as wide as the terminal, of fixed width when there is none."""
    return _Console(
        file=out, width=None if out.isatty() else _WIDTH, highlight=False, soft_wrap=False
    )


def _heading(console: Console, report: Mapping[str, Any]) -> None:
    model, machine, options = report["model"], report["machine"], report["options"]
    console.print(
        Text(
            f"{model['file']} ({model['name']}): "
            f"a training step of batch {model['batch']} in {options['dtype']}, "
            f"{model['parameters']:,} parameters, {model['nodes']:,} graph nodes",
            style="bold",
        )
    )
    _machine_line(console, machine)


def _array(machine: Mapping[str, Any]) -> str:
    size, count = f"{machine['rows']}x{machine['cols']}", machine.get("arrays", 1)
    return f"{size} array" if count == 1 else f"{count} arrays of {size}"


def _machine_line(console: Console, machine: Mapping[str, Any], before: str = "") -> None:
    console.print(
        Text(
            f"{before}on {machine['name']}: {_array(machine)} at "
            f"{machine['clock_ghz']:g} GHz, {quantity('gbuf_bytes', machine['gbuf_bytes'])} GBUF, "
            f"{machine['dram_bandwidth_gib_s']:g} GiB/s DRAM"
        )
    )


def _assumed(console: Console, sentences: Sequence[str]) -> None:
    if sentences:
        console.print(Text("assumed: " + "; ".join(sentences)))


def _notes(console: Console, notes: Sequence[str], verbose: bool) -> None:
    shown = notes if verbose else notes[:_NOTES]
    for note in shown:
        console.print(Text(note))
    if len(shown) < len(notes):
        console.print(f"note: {len(notes) - len(shown)} more; -v shows them")


def _choice(console: Console, choice: Mapping[str, Any], verbose: bool) -> None:
    tried = choice["tried"]
    executed = [t for t in tried if t["cycles"] is not None]
    best = next(t for t in tried if t["best"])
    gap = f", {choice['gap']:.2f}x the bound" if choice["gap"] else ""
    console.print(
        Text(
            f"chosen for {choice['objective']}: {schedule_name(best)}{gap}; of {len(tried)} "
            f"schedules {len(executed)} were executed"
            + ("; the budget ran out" if any("budget" in t["why_not"] for t in tried) else "")
        )
    )
    if verbose:
        for t in tried:
            took = f"{t['cycles']:,} cycles" if t["cycles"] is not None else t["why_not"]
            console.print(Text(f"  {schedule_name(t)}: {took}"))


def schedule_name(tried: Mapping[str, Any]) -> str:
    """A schedule that a search tried, in words."""
    words = f"--serialize {tried['serialize']} --recompute {tried['recompute']}"
    words += f", {tried['tiles']:.0%} for tiles" if tried["tiles"] else ""
    return words + (", in halves" if tried["halves"] else "")


def _totals_table(report: Mapping[str, Any]) -> Table:
    totals, bounds, baseline = report["totals"], report["bounds"], report["baseline"]
    table = Table(title="totals", title_justify="left", box=None, pad_edge=False)
    strong = report.get("strong_baseline")
    columns = ("", "this program", "bound", "times bound", "baseline")
    for column in (*columns, "strong baseline") if strong else columns:
        table.add_column(column, justify="left" if not column else "right")
    for field in TOTALS:
        key = field.key
        ratio = f"{totals[key] / bounds[key]:.2f}x" if bounds[key] else ""
        table.add_row(
            field.title,
            quantity(key, totals[key]),
            quantity(key, bounds[key]) if bounds[key] else "-",
            ratio,
            quantity(key, baseline[key]),
            *([quantity(key, strong[key])] if strong else []),
        )
    return table


def _waterfall_table(found: Mapping[str, Any]) -> Table:
    """What each pass changed, one more being on in each row."""
    table = Table(title="waterfall of passes", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for title, _ in found["heads"]:
        table.add_column(title, justify="right", no_wrap=True)
        table.add_column("", justify="right", no_wrap=True)
    for row in found["rows"]:
        cells = [text for c in row["cells"] for text in (c["value"], c["change"])]
        table.add_row(Text(row["name"]), *cells)
    return table


def _bounds_table(report: Mapping[str, Any]) -> Table:
    table = Table(title="bounds", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("formula")
    table.add_column("why")
    titles = {f.key: f.title for f in TOTALS}
    for key, entry in report["bound_formulas"].items():
        table.add_row(
            Text(titles[key]), Text(f"{entry['direction']} {entry['formula']}"), Text(entry["why"])
        )
    return table


def _layers_table(report: Mapping[str, Any], verbose: bool) -> Table:
    layers = report["layers"]
    shown = layers if verbose else worst_layers(layers)
    title = (
        f"all {len(layers)} layers" if verbose else f"worst {len(shown)} of {len(layers)} layers"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("ONNX node")
    table.add_column("kind", no_wrap=True)
    table.add_column("phase", no_wrap=True)
    for column in ("cycles", "share", "DRAM", "PE use"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("busiest", no_wrap=True)
    for layer in shown:
        table.add_row(
            Text(_tail(layer["node"], 400 if verbose else _NAME_WIDTH)),
            Text(_tail(layer["kind"], _KIND_WIDTH)),
            layer["phase"],
            quantity("cycles", layer["cycles"]),
            quantity("share", layer["share"]),
            quantity("dram_read_bytes", layer["dram_read_bytes"] + layer["dram_write_bytes"]),
            quantity("pe_utilisation", layer["pe_utilisation"]),
            f"{layer['bound_by']} {100 * layer['bound_share']:.0f} %",
        )
    return table


def _tail(name: str, width: int) -> str:
    return name if len(name) <= width else "…" + name[len(name) - width + 1 :]


def worst_layers(layers: Sequence[Mapping[str, Any]], count: int = 10) -> list[Mapping[str, Any]]:
    """The layers that take the most cycles, the longest first."""
    return sorted(layers, key=lambda layer: -layer["cycles"])[:count]


def _engines_table(engines: Sequence[Mapping[str, Any]], cycles: int) -> Table:
    table = Table(title="engines", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("busy", justify="right")
    table.add_column("stalled", justify="right")
    table.add_column("waiting mostly for")
    for engine in engines:
        stalls = sorted(engine["stalls"].items(), key=lambda item: (-item[1], item[0]))
        share = [f"{cause} {100 * n / max(cycles, 1):.1f} %" for cause, n in stalls[:3] if n]
        table.add_row(
            engine["engine"],
            f"{100 * engine['busy_cycles'] / max(cycles, 1):.1f} %",
            f"{100 * sum(engine['stalls'].values()) / max(cycles, 1):.1f} %",
            ", ".join(share),
        )
    return table
