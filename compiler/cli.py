"""The command `ccnn`.

Only click is imported here: what a command needs is loaded when it runs, so that `ccnn --help`
answers at once.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import click

from ccnn.compiler.cli_insight import COMMANDS as INSIGHT
from ccnn.compiler.cli_lists import COMMANDS as LISTS
from ccnn.compiler.failure import MEANING, ExitCode, explain
from ccnn.compiler.options import Settings, cache_option, json_option, loudness, step_options

_CODES = "\b\nExit codes:\n" + "\n".join(f"  {c.value:>3}  {MEANING[c]}" for c in ExitCode)
_FILE = click.Path(path_type=Path)

model_argument = click.argument("model", type=_FILE)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_CODES,
)
@click.version_option(package_name="ccnn", message="%(prog)s %(version)s")
def cli() -> None:
    """Compile a CNN from ONNX into the accelerator program of one whole training step, execute
    that program, check its values and say what it costs.

    \b
    Start with
      ccnn check model.onnx            what is in the model, can it be compiled
      ccnn compile model.onnx -o out   compile it, and see what a step costs
      ccnn verify model.onnx           execute the program and check its values
    """


@cli.command("compile", short_help="Compile MODEL and say what a step costs.")
@model_argument
@step_options(dtype="bfloat16")
@click.option(
    "-o",
    "--output",
    type=_FILE,
    metavar="DIR",
    help="Folder for the files.  [default: ccnn-out, none with --json]",
)
@click.option(
    "--dump-passes",
    type=_FILE,
    metavar="DIR",
    help="Folder for the graph after each pass, as text.",
)
@click.option(
    "--ablate",
    is_flag=True,
    help="Also execute what lies between the conventional schedule and this one: the report then "
    "says what each step saved.",
)
@cache_option
@json_option
@loudness
def compile_command(
    model: Path,
    settings: Settings,
    output: Path | None,
    dump_passes: Path | None,
    ablate: bool,
    no_cache: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Compile MODEL (an ONNX file) and simulate the program's timing.

    The folder receives program.asm and program.bin (the program as text and binary), mapping.txt
    (how each layer is cut into tiles), report.html, report.json and layers.csv (what it costs),
    trace.pftrace (a timeline for Perfetto) and model.annotated.onnx (costs for Netron). Each file
    is written whole or not at all.
    """
    from ccnn.compiler.actions import compile_to_folder

    folder = output if output is not None or as_json else Path("ccnn-out")
    compile_to_folder(
        model, settings, folder, as_json=as_json, quiet=quiet, verbose=verbose,
        dump_passes=dump_passes, ablate=ablate, no_cache=no_cache,
    )  # fmt: skip


@cli.command("run", short_help="Execute the program of MODEL with real data.")
@model_argument
@click.option(
    "--inputs",
    type=_FILE,
    required=True,
    metavar="FILE.npz",
    help="Arrays named as the model's inputs, and `target`.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    metavar="N",
    help="Training steps to execute, all on these inputs.",
)
@click.option("--save-results", type=_FILE, metavar="FILE.npz", help="Where to save the results.")
@step_options(dtype="float32")
@loudness
def run_command(
    model: Path,
    inputs: Path,
    steps: int,
    save_results: Path | None,
    settings: Settings,
    quiet: bool,
    verbose: bool,
) -> None:
    """Execute the program of MODEL with real data.

    Results: loss, output, grad_input, grad/NAME for each parameter, w1/NAME and bn1/NAME
    (parameters and running statistics after one step), loss2 and w2/NAME (after a second). NAME is
    the ONNX initializer's. Without --batch the mini-batch is as large as the arrays given.
    """
    from ccnn.compiler.actions import run_with_inputs

    run_with_inputs(model, settings, inputs, steps, save_results, quiet=quiet, verbose=verbose)


@cli.command("verify", short_help="Execute the program of MODEL and check its values.")
@model_argument
@step_options(dtype="float32")
@loudness
def verify_command(model: Path, settings: Settings, quiet: bool, verbose: bool) -> None:
    """Prove the program of MODEL safe and check its values.

    Executes it with seeded random data and compares loss, outputs, every gradient and every
    update with the graph computed in float64. Prints the worst tensors; exit code 1 if one is
    out of its bound.
    """
    from ccnn.compiler.actions import verify_model

    verify_model(model, settings, quiet=quiet, verbose=verbose)


@cli.command("export", short_help="Write the training step of MODEL as plain ONNX.")
@model_argument
@click.option(
    "-o", "--output", type=_FILE, required=True, metavar="FILE.onnx", help="The file to write."
)
@click.option("--lowered", is_flag=True, help="The step after the passes that compile runs.")
@click.option("--input-gradient", is_flag=True, help="Also give grad_input, the first input's.")
@step_options(dtype="float32", machine=False)
@loudness
def export_command(
    model: Path,
    output: Path,
    lowered: bool,
    input_gradient: bool,
    settings: Settings,
    quiet: bool,
    verbose: bool,
) -> None:
    """Write the whole training step of MODEL (forward, loss, backward, update) as plain ONNX.

    The file uses standard operators only (operator set 21), so that onnxruntime and others
    execute it. Inputs: the model's own, the target, and parameters and state, which have their
    initial values as defaults. Outputs: loss, output, grad/NAME, w1/NAME (parameters after the
    step), bn1/NAME (running statistics), state1/NAME (the optimizer's). Feed what stands behind
    w1/, bn1/ and state1/ back as NAME for the next step. onnxruntime has float32 kernels for all
    of it; for the other precisions of --dtype it lacks some on CPUs.
    """
    from ccnn.compiler.export.command import export_to_file

    export_to_file(
        model,
        settings,
        output,
        lowered=lowered,
        input_gradient=input_gradient,
        quiet=quiet,
        verbose=verbose,
    )


@cli.command("simulate", short_help="Simulate the timing of a program file.")
@click.argument("program", type=_FILE)
@click.option("--target", metavar="NAME|FILE.yaml", help="Machine.  [default: the program's own]")
@json_option
@loudness
def simulate_command(
    program: Path, target: str | None, as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Prove PROGRAM (program.asm or program.bin) safe and simulate its timing."""
    from ccnn.compiler.actions import simulate_file

    simulate_file(program, target, as_json=as_json, quiet=quiet, verbose=verbose)


@cli.command("report", short_help="Print an earlier report again.")
@click.argument("folder", type=_FILE, metavar="DIR")
@click.option("--html", is_flag=True, help="Make report.html anew instead of printing.")
@click.option(
    "--target", metavar="FILE.yaml", help="With --html: the machine, when it is your own."
)
@json_option
@loudness
def report_command(
    folder: Path, html: bool, target: str | None, as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Print the report of an earlier `ccnn compile -o DIR` again."""
    from ccnn.compiler.actions import show_folder

    if html:
        from ccnn.compiler.insight import write_page

        write_page(folder, target, quiet)
        return
    show_folder(folder, as_json=as_json, quiet=quiet, verbose=verbose)


@cli.command("check", short_help="Say what is in MODEL and what keeps it from compiling.")
@model_argument
@click.option("--batch", type=click.IntRange(min=1), metavar="N", help="As for compile.")
@click.option("--loss", type=click.Choice(("ce", "mse")), help="As for compile.")
@json_option
@loudness
def check_command(
    model: Path, batch: int | None, loss: str | None, as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Say what is in MODEL, and everything that keeps it from being compiled, all at once.

    Exit code 1 if something does.
    """
    from ccnn.compiler.check import check_file

    check_file(model, batch, loss, as_json=as_json, quiet=quiet, verbose=verbose)


@cli.command("map", short_help="Map one GEMM onto a machine's array.")
@click.argument("m", type=click.IntRange(min=1))
@click.argument("n", type=click.IntRange(min=1))
@click.argument("k", type=click.IntRange(min=1))
@click.option(
    "--target",
    default="wavecore",
    metavar="NAME|FILE.yaml",
    show_default=True,
    help="Machine; `ccnn targets` lists the shipped ones.",
)
@click.option("--ideal-memory", is_flag=True, help="DRAM and reductions take no time.")
@click.option("--no-fill-drain", is_flag=True, help="Leave out the array's fill and drain.")
@click.option(
    "--mapper",
    type=click.Choice(("exact", "heuristic")),
    default="exact",
    show_default=True,
    help="The proven best, or FlexSA's rule.",
)
@click.option(
    "--objective",
    type=click.Choice(("time", "traffic", "energy")),
    default="time",
    show_default=True,
    help="What to keep low: cycles, bytes through DRAM and local buffers, or energy.",
)
@click.option(
    "--from-mapping", type=_FILE, metavar="FILE", help="Price this mapping instead of the best."
)
@json_option
@cache_option
def map_command(
    m: int,
    n: int,
    k: int,
    target: str,
    ideal_memory: bool,
    no_fill_drain: bool,
    mapper: str,
    objective: str,
    from_mapping: Path | None,
    as_json: bool,
    no_cache: bool,
) -> None:
    """Map the GEMM result[M,N] = a[M,K] @ b[K,N] onto a machine's arrays.

    Prints how it is cut into parts, waves, strips and blocks, the mode of each block, and what it
    costs, with 16-bit operands and 32-bit sums. The first lines can be edited and given back with
    --from-mapping.
    """
    from ccnn.compiler.mapper.array import Rules
    from ccnn.compiler.product import show_product

    rules = Rules(not no_fill_drain, ideal_memory, objective=objective)
    show_product((m, n, k), target, rules, mapper, from_mapping, as_json=as_json, keep=not no_cache)


for command in (*INSIGHT, *LISTS):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit with one of the documented codes."""
    # Products here are small: a second BLAS thread gains nothing on an idle machine, and on a busy
    # one each product waits for it.  numpy reads this when it is first imported, later.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run the command and give its exit code; says on standard error what went wrong."""
    verbose = any(a in ("-v", "--verbose") for a in arguments)
    try:
        with cli.make_context("ccnn", list(arguments)) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        sys.stderr.write("\nccnn: stopped; nothing half-written was left behind\n")
        return ExitCode.INTERRUPTED
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except BrokenPipeError:
        _forget_stdout()
        return ExitCode.PIPE
    except Exception as error:  # the outermost boundary: users get messages, not tracebacks
        return _fail(error, verbose)
    return ExitCode.OK


def _fail(error: Exception, verbose: bool) -> int:
    failure = explain(error)
    if verbose and failure.code is ExitCode.INTERNAL:
        traceback.print_exception(error)
    message = str(failure).strip()
    if message:
        sys.stderr.write(f"ccnn: {message}\n")
    if isinstance(error, OSError):
        _forget_stdout()
    return failure.code


def _forget_stdout() -> None:
    """Nothing can be written to standard output any more; keep the interpreter from trying."""
    # A caller may have put something without a file behind it in its place.
    with suppress(io.UnsupportedOperation), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
