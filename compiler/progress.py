"""Progress of long work, on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how far it is, and how far it will go (0: unknown)."""

_QUIET_SECONDS = 2.0
"""Between two plain lines of the same stage."""


@contextmanager
def progress_on_stderr(quiet: bool) -> Iterator[Progress]:
    """A progress callable that suits whoever is watching; silent when `quiet`."""
    if quiet:
        yield lambda stage, done, total: None
    elif sys.stderr.isatty():
        with _bar() as progress:
            yield progress
    else:
        yield plain_progress()


def plain_progress(clock: Callable[[], float] = time.monotonic) -> Progress:
    """Lines for a log: one when a stage starts, then at most one every two seconds."""
    last_stage = ""
    last_time = clock()

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal last_stage, last_time
        now = clock()
        if stage == last_stage and now - last_time < _QUIET_SECONDS:
            return
        far = f" {done}/{total}" if total and stage == last_stage else ""
        last_stage, last_time = stage, now
        sys.stderr.write(f"ccnn: {stage}{far}\n")
        sys.stderr.flush()

    return progress


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as live:
        task = live.add_task("starting", total=None)

        def progress(stage: str, done: int, total: int) -> None:
            live.update(task, description=stage, completed=done, total=total or None)

        yield progress
