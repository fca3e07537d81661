"""What the reader has to say about a model: problems, and the errors that carry them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Problem:
    """One finding: which node, what is wrong and where, and what to do about it.

    `error` means the model was not read; `warning` that the result may not be what was meant;
    `note` that something was decided on the user's behalf.
    """

    severity: Severity
    node: str
    op: str
    where: str
    why: str
    fix: str = ""

    @property
    def place(self) -> str:
        """The operator, node and part of the model that it is about."""
        subject = f"{self.op} '{self.node}'" if self.op and self.node else self.node or self.op
        return ": ".join(p for p in (subject, self.where) if p)

    def __str__(self) -> str:
        return self.text()

    def text(self, also: str = "") -> str:
        """The problem in one line, and what to do in a second; `also` names other places."""
        place = f"{self.place}{also}: " if self.place else ""
        fix = f"\n    -> {self.fix}" if self.fix else ""
        return f"{self.severity}: {place}{self.why}{fix}"


_NAMED = 2
"""How many more nodes with the same problem are named."""


def problem_lines(problems: Iterable[Problem]) -> list[str]:
    """Problems as text, those that differ only in their node as one with the first few named."""
    alike: dict[tuple[str, ...], list[Problem]] = {}
    for p in problems:
        place = "" if p.where.startswith("initializer ") else p.where
        alike.setdefault((p.severity, p.op, place, p.why, p.fix), []).append(p)
    return [first.text(_also(others)) for first, *others in alike.values()]


def _also(others: list[Problem]) -> str:
    names = [p.node or p.where.removeprefix("initializer ").strip("'") for p in others]
    named = "".join(f", '{name}'" for name in names[:_NAMED])
    left = len(names) - _NAMED
    return f"{named} and {left} more" if left > 0 else named


class ReadError(Exception):
    """A model that cannot be read; `problems` lists everything found, not only the first."""

    def __init__(self, problems: list[Problem] | tuple[Problem, ...], model: str = "") -> None:
        self.problems = tuple(problems)
        self.model = model
        errors = [p for p in self.problems if p.severity == "error"]
        head = f"cannot read {model or 'the model'}: {len(errors)} problem"
        head += "" if len(errors) == 1 else "s"
        super().__init__("\n".join([head, *problem_lines(errors)]))


class Refusal(Exception):
    """Raised while one node is translated: why it cannot be, and what to do about it."""

    def __init__(self, why: str, fix: str = "", where: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.fix = fix
        self.where = where


@dataclass(frozen=True)
class ReadReport:
    """Everything worth knowing about a reading that succeeded (or the facts up to the failure)."""

    model: str = ""
    producer: str = ""
    ir_version: int = 0
    opset: int = 0
    onnx_nodes: int = 0
    dropped_nodes: int = 0
    folded_nodes: int = 0
    op_counts: dict[str, int] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    def of(self, severity: Severity) -> tuple[Problem, ...]:
        """The findings of one severity."""
        return tuple(p for p in self.problems if p.severity == severity)


class Findings:
    """Collects problems while a model is read, each only once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.assumed: list[str] = []

    def add(
        self,
        severity: Severity,
        why: str,
        fix: str = "",
        *,
        node: str = "",
        op: str = "",
        where: str = "",
    ) -> None:
        """Note one problem; an equal one is not repeated."""
        problem = Problem(severity, node, op, where, why, fix)
        if problem not in self.problems:
            self.problems.append(problem)

    def error(self, why: str, fix: str = "", **place: str) -> None:
        """Note a problem that stops the reading (after everything else was looked at)."""
        self.add("error", why, fix, **place)

    def warning(self, why: str, fix: str = "", **place: str) -> None:
        """Note something that may not be what the user meant."""
        self.add("warning", why, fix, **place)

    def note(self, why: str, fix: str = "", **place: str) -> None:
        """Note a decision taken on the user's behalf."""
        self.add("note", why, fix, **place)

    def assume(self, text: str) -> None:
        """Note a default that the user did not choose."""
        if text not in self.assumed:
            self.assumed.append(text)

    @property
    def failed(self) -> bool:
        """True when an error was noted."""
        return any(p.severity == "error" for p in self.problems)

    def stop_if_failed(self, model: str) -> None:
        """Raise ReadError with everything found so far when there is an error among it."""
        if self.failed:
            raise ReadError(self.problems, model)
