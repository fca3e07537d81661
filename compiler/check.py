"""Looks a model over without compiling it: what is in it, what it would cost, what stands in the
way.  Never raises for a bad model: the report says what is wrong."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ccnn.compiler.failure import ExitCode, Failure
from ccnn.compiler.files import need
from ccnn.compiler.reader import Problem, ReadError, ReadOptions, ReadReport, read_model
from ccnn.compiler.reader.problems import problem_lines
from ccnn.passes.graph import Graph
from ccnn.passes.ops import op_named


@dataclass(frozen=True)
class CheckReport:
    """What `check_model` found; counts are of the forward pass and 0 when it could not be read."""

    model: str
    problems: tuple[Problem, ...]
    assumed: tuple[str, ...] = ()
    producer: str = ""
    opset: int = 0
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    outputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    onnx_ops: dict[str, int] = field(default_factory=dict)
    ops: dict[str, int] = field(default_factory=dict)
    parameters: int = 0
    parameter_elements: int = 0
    state_elements: int = 0
    forward_macs: int = 0
    activation_elements: int = 0

    @property
    def ok(self) -> bool:
        """True when the model can be compiled."""
        return not any(p.severity == "error" for p in self.problems)

    def as_json(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        return {
            "schema": "ccnn-check/1",
            "ok": self.ok,
            **{k: v for k, v in asdict(self).items() if k != "problems"},
            "problems": [asdict(p) for p in self.problems],
        }

    def text(self, verbose: bool = False) -> str:
        """The report for a terminal; notes are shown when `verbose` or when nothing is worse."""
        lines = [f"{self.model}: {'can be compiled' if self.ok else 'cannot be compiled'}"]
        if self.ok:
            lines += self._facts()
        order = {"error": 0, "warning": 1, "note": 2}
        shown = [p for p in self.problems if verbose or self.ok or p.severity != "note"]
        lines += problem_lines(sorted(shown, key=lambda p: order[p.severity]))
        lines += [f"assumed: {text}" for text in self.assumed]
        return "\n".join(lines) + "\n"

    def _facts(self) -> list[str]:
        def shapes(named: dict[str, tuple[int, ...]]) -> str:
            return ", ".join(f"{k} {list(v)}" for k, v in named.items())

        def counts(named: dict[str, int]) -> str:
            return ", ".join(f"{k} {n}" for k, n in named.items())

        return [
            f"  from         {self.producer or 'an unknown exporter'}, operator set {self.opset}",
            f"  inputs       {shapes(self.inputs)}",
            f"  outputs      {shapes(self.outputs)}",
            f"  onnx nodes   {sum(self.onnx_ops.values())}: {counts(self.onnx_ops)}",
            f"  graph nodes  {sum(self.ops.values())}: {counts(self.ops)}",
            f"  parameters   {self.parameters} tensors, {self.parameter_elements:,} elements",
            f"  activations  {self.activation_elements:,} elements",
            f"  forward      {self.forward_macs:,} multiply-accumulates",
        ]


def check_model(path: str | Path, options: ReadOptions | None = None) -> CheckReport:
    """Everything worth knowing about a model before compiling it, problems included."""
    name = Path(path).name
    try:
        result = read_model(path, options)
    except ReadError as error:
        return CheckReport(name, error.problems)
    return _report(name, result.graph, result.report)


def _report(name: str, graph: Graph, read: ReadReport) -> CheckReport:
    parameters, state = graph.of_role("parameter"), graph.of_role("state")
    return CheckReport(
        name,
        read.problems,
        read.assumed,
        read.producer,
        read.opset,
        {t.name: t.shape for t in graph.of_role("input")},
        {o: graph[o].shape for o in graph.outputs},
        dict(read.op_counts),
        dict(sorted(Counter(n.op for n in graph.nodes).items())),
        len(parameters),
        sum(t.size for t in parameters),
        sum(t.size for t in state),
        count_macs(graph),
        sum(t.size for t in graph.of_role("value")),
    )


def count_macs(graph: Graph) -> int:
    """Multiply-accumulates of all nodes of a graph."""
    return sum(
        op_named(n.op).macs(
            n, [graph[i] if i else None for i in n.inputs], [graph[o] for o in n.outputs]
        )
        for n in graph.nodes
    )


def check_file(
    model: Path, batch: int | None, loss: Any, *, as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Say what is in a model and everything that keeps it from being compiled."""
    need(model)
    report = check_model(model, ReadOptions(batch=batch, loss=loss))
    if as_json:
        from ccnn.compiler.lists import print_json  # which brings rich, for tables

        print_json(report.as_json())
    elif not quiet:
        sys.stdout.write(report.text(verbose))
    if not report.ok:
        raise Failure(ExitCode.FAILED, "")
