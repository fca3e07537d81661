"""What `ccnn export` does: from the given file to the written one."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from onnx import ModelProto, ValueInfoProto

from ccnn.compiler.actions import compile_options
from ccnn.compiler.export.step import OPSET, export_step, serialized, training_step
from ccnn.compiler.failure import ExitCode, Failure
from ccnn.compiler.files import need, writable, write_file
from ccnn.compiler.options import Settings
from ccnn.compiler.progress import progress_on_stderr
from ccnn.passes.graph import GraphError


def export_to_file(
    model: Path,
    settings: Settings,
    output: Path,
    *,
    lowered: bool,
    input_gradient: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Write the training step of a model as ONNX and say what is in it."""
    need(model)
    writable(output)
    options = compile_options(settings, input_gradient=input_gradient)
    with progress_on_stderr(quiet) as progress:
        progress("differentiating", 0, 0)
        try:
            read, step = training_step(model, options)
        except GraphError as error:
            if options.freeze and "freezes nothing" in str(error):
                raise Failure(ExitCode.USAGE, f"--freeze: {error}") from error
            raise
        for problem in read.report.of("warning"):
            sys.stderr.write(f"ccnn: {problem}\n")
        progress("writing ONNX", 0, 0)
        made = export_step(read, step, options.dtype, lowered=lowered)
        content = serialized(made)
        write_file(output, lambda stream: stream.write(content))
    if not quiet:
        for text in settings.assumed if verbose else ():
            sys.stdout.write(f"assumed: {text}\n")
        sys.stdout.write(_summary(made))
        sys.stdout.write(f"wrote {output} ({len(content):,} bytes)\n")


def _summary(made: ModelProto) -> str:
    """What goes in and comes out, in a few lines."""
    defaults = {i.name for i in made.graph.initializer}
    fed = [i for i in made.graph.input if i.name not in defaults]
    kept = len(made.graph.input) - len(fed)
    lines = [
        f"{len(made.graph.node):,} nodes of ONNX operator set {OPSET}",
        f"  inputs   {', '.join(_shaped(i) for i in fed)}; {kept} with defaults",
        f"  outputs  {', '.join(_counted(o.name for o in made.graph.output))}",
        "  next step: feed w1/NAME, bn1/NAME and state1/NAME back as NAME",
    ]
    return "\n".join(lines) + "\n"


def _shaped(value: ValueInfoProto) -> str:
    dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
    return f"{value.name} {dims}"


def _counted(names: Iterable[str]) -> list[str]:
    """Output names, those of a kind together: `62 grad/NAME`."""
    counts: dict[str, int] = {}
    for name in names:
        kind, _, rest = name.partition("/")
        key = f"{kind}/NAME" if rest else name
        counts[key] = counts.get(key, 0) + 1
    return [f"{n} {k}" if k.endswith("/NAME") else k for k, n in counts.items()]
