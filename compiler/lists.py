"""What the commands `ops`, `passes` and `targets` print."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Sequence
from importlib.resources import files

from rich.table import Table
from rich.text import Text

from ccnn.compiler.report.show import console_for
from ccnn.targets.machine import describe, load_machine, shipped_machines
from ccnn.targets.plugins import plugin_machines


def show_ops(as_json: bool) -> None:
    """Each op of the graph language: name, whether code is generated for it, what it is."""
    from ccnn.passes.ops import op_named, op_names  # here, so that `targets` need not wait for it

    rows = [
        {"name": name, "primitive": op.primitive, "about": _first_sentence(op)}
        for name, op in ((name, op_named(name)) for name in op_names())
    ]
    if as_json:
        print_json(rows)
        return
    table = [(r["name"], "primitive" if r["primitive"] else "", r["about"]) for r in rows]
    _print_table(("op", "", "what it computes"), table)


def show_passes(as_json: bool) -> None:
    """Each pass: those that compile runs first, in their order."""
    from ccnn.passes.pipeline import DEFAULT, pass_named, pass_names

    order = [p.name for p in DEFAULT]
    names = [*dict.fromkeys(order), *(n for n in pass_names() if n not in order)]
    rows = [
        {
            "name": name,
            "default": order.index(name) + 1 if name in order else None,
            "about": _first_sentence(pass_named(name)),
        }
        for name in names
    ]
    if as_json:
        print_json(rows)
        return
    table = [(r["name"], str(r["default"] or ""), r["about"]) for r in rows]
    _print_table(("pass", "runs", "what it does"), table)


def show_machines() -> None:
    """The shipped machines and those of plug-ins, a line each."""
    names = dict.fromkeys((*shipped_machines(), *plugin_machines()))
    machines = [load_machine(name) for name in names]
    _print_table(("machine", "about"), [(m.name, m.description) for m in machines])


def show_machine(name: str) -> None:
    """All numbers of a machine."""
    sys.stdout.write(describe(load_machine(name)))


def show_machine_schema() -> None:
    """The JSON Schema of machine files."""
    sys.stdout.write(files("ccnn.targets.machines").joinpath("machine.schema.json").read_text())


def print_json(value: object) -> None:
    """Indented JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console_for(sys.stdout).print(table)


def _first_sentence(thing: object) -> str:
    """The first paragraph of a docstring, on one line."""
    kind = thing if inspect.isclass(thing) else type(thing)
    text = kind.__dict__.get("__doc__") or ""
    return " ".join(inspect.cleandoc(text).split("\n\n")[0].split())
