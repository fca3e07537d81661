"""The commands that look behind the figures or the errors: explain, advise, diff, bugreport."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ccnn.compiler.options import Settings, json_option, loudness, step_options

_FILE = click.Path(path_type=Path)
_PARAMETERS = (
    "array",
    "clock_ghz",
    "gbuf_bytes",
    "dram_bandwidth_gib_s",
    "dram_latency_cycles",
    "lanes",
    "vector_startup_cycles",
    "acc_rows",
    "lbuf_h_rows",
    "barrier_cycles",
)
"""Those of advise.py, spelled here because --help loads nothing; a test compares them."""


@click.command("explain", short_help="Say how one layer was compiled, and what bounds it.")
@click.argument("model", type=_FILE)
@click.argument("node")
@step_options(dtype="bfloat16")
@json_option
@loudness
def explain_command(
    model: Path, node: str, settings: Settings, as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Say how NODE of MODEL was lowered, tiled and placed, what bounds it and what would help.

    NODE is the name of an ONNX node as the report shows it, or of a graph node. Each of its
    kernels is executed alone, on machines that differ in one parameter, and with the tilings
    that the mapper passed over.
    """
    from ccnn.compiler.explain import explain_node, explanation_json
    from ccnn.compiler.explain_text import show_explanation
    from ccnn.compiler.insight import compiled
    from ccnn.compiler.lists import print_json

    with compiled(model, settings, quiet) as (compilation, progress):
        progress("simulating", 0, 0)
        explanation = explain_node(compilation, node, progress=progress)
    if as_json:
        print_json(explanation_json(explanation))
    elif not quiet:
        show_explanation(explanation, sys.stdout, verbose)


@click.command("advise", short_help="Say what each parameter of the machine is worth.")
@click.argument("model", type=_FILE)
@step_options(dtype="bfloat16")
@click.option(
    "--only",
    "parameters",
    type=click.Choice(_PARAMETERS),
    multiple=True,
    help="Try this parameter only; repeatable.",
)
@json_option
@loudness
def advise_command(
    model: Path,
    settings: Settings,
    parameters: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Halve and double each parameter of the machine, compile and execute MODEL's step again, and
    say what that does to time, cycles, traffic and energy."""
    from ccnn.compiler.insight import advise_model

    advise_model(model, settings, parameters or _PARAMETERS, as_json=as_json, quiet=quiet)


@click.command("diff", short_help="Say what changed between two compilations.")
@click.argument("before", type=_FILE, metavar="DIR_A")
@click.argument("after", type=_FILE, metavar="DIR_B")
@click.option(
    "--threshold",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="PERCENT",
    help="How much worse a total of DIR_B may be.",
)
@json_option
@loudness
def diff_command(
    before: Path, after: Path, threshold: float, as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Say what changed from one output folder of `ccnn compile -o DIR` to another: model, machine,
    options, totals, layers, tiles.

    Exit code 1 if cycles, time, DRAM traffic or energy grew by more than the threshold.
    """
    from ccnn.compiler.diff import diff_folders

    diff_folders(
        before, after, threshold, as_json=as_json, quiet=quiet, verbose=verbose, out=sys.stdout
    )


@click.command("bugreport", short_help="Pack MODEL, without names and weights, into a bug report.")
@click.argument("model", type=_FILE)
@click.option(
    "-o",
    "--output",
    type=_FILE,
    default="ccnn-bugreport.zip",
    show_default=True,
    metavar="FILE.zip",
    help="The file to write.",
)
@step_options(dtype="bfloat16")
@loudness
def bugreport_command(
    model: Path, output: Path, settings: Settings, quiet: bool, verbose: bool
) -> None:
    """Pack all that is needed to see a problem with MODEL into one file: the model with numbered
    names and made-up weights, the machine, options, versions and what came of compiling it.

    Give the same options as to compile. The packed model is compiled as well, and the bundle says
    whether that gave the same. Nothing is sent anywhere.
    """
    from ccnn.compiler.bugreport import write_bundle

    write_bundle(model, settings, output, quiet=quiet)


COMMANDS = (explain_command, advise_command, diff_command, bugreport_command)
"""What cli.py adds to `ccnn`."""
