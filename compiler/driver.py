"""The whole flow, spelled once: model, graph, step, primitives, mapping, program.

execution.py runs what comes out.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ccnn.compiler.choose import (
    Candidate,
    Choice,
    Objective,
    Recomputation,
    Serialization,
    Work,
    candidates,
    count_macs,
    predict,
    search,
)
from ccnn.compiler.codegen import generate
from ccnn.compiler.mapping import Mapping
from ccnn.compiler.reader import ReadOptions, ReadResult, read_model
from ccnn.compiler.schedule import Progress, element_bytes, grouped, grouped_and_mapped, prepared
from ccnn.passes.autodiff import Optimizer, differentiate
from ccnn.passes.graph import Graph
from ccnn.passes.norm_policy import NormPolicy
from ccnn.passes.pipeline import DEFAULT, run_pipeline
from ccnn.passes.recompute import MACS_PER_BYTE
from ccnn.passes.row_plan import macs_made_again
from ccnn.passes.serialize_minibatch import SerializeMinibatch
from ccnn.passes.share_gradients import ShareGradients
from ccnn.passes.traffic import estimate
from ccnn.targets.machine import Machine, MachineError, load_machine
from ccnn.targets.program import Program
from ccnn.targets.simulator import Trace, simulate

GraphWatcher = Callable[[str, Graph], None]
"""Called with the name of what made a graph (read, differentiate, a pass) and that graph."""


@dataclass(frozen=True)
class CompileOptions:
    """What the user may choose; everything else follows from the model and the machine."""

    target: str | Machine = "wavecore"
    """A shipped machine's name, the path of a YAML file, or a machine."""
    batch: int | None = None
    dtype: str = "bfloat16"
    """float64, float32, bfloat16 or float16; sums are kept in float32 at least."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    loss: Literal["ce", "mse"] | None = None
    freeze: tuple[str, ...] = ()
    input_gradient: bool = False
    """Also compute the gradient of the model's first input, which training does not need."""
    dropout: bool = False
    seed: int = 0
    norm: Literal["exact", "group", "ghost"] = "exact"
    """What batch norms become; all but exact change what is computed."""
    serialize: Serialization | Literal["auto"] = "none"
    """How runs of layers go through the buffer in sub-batches; none: the conventional schedule;
    auto: whatever turns out best."""
    recompute: Recomputation | Literal["auto"] = "none"
    """What the backward pass makes anew rather than fetches; auto: whatever turns out best."""
    macs_per_byte: float = MACS_PER_BYTE
    """Multiply-accumulates that `layers` pays for each byte that need not be kept."""
    rows: Literal["auto", "off"] = "auto"
    """Whether `best` and `auto` may go through images by bands of rows."""
    tiles: float | None = None
    """Share of the buffer that groups leave to the tiles that stream through it; None: the first
    of a few that all groups fit beside."""
    halves: bool = False
    """Whether the samples of an iteration go through the forward pass as two halves, so that array
    and vector unit work at once; what streams in is then fetched for each half. Of the room beside
    what stays on chip more goes to early loads, less to tiles."""
    objective: Objective = "time"
    """What is kept low where an option is auto."""
    budget: float | None = None
    """Seconds after which nothing more is tried where an option is auto."""
    mapper: Literal["exact", "heuristic"] = "exact"
    """How products are cut for the array: as proven best, or by FlexSA's rule."""
    interleave: Literal["auto", "off", "tile", "element"] = "off"
    """Whether dX and dW of a layer share one sweep over dY: where it pays, nowhere, or wherever it
    fits, tile by tile in the buffer or element by element in the array."""
    gradients: bool = True
    """Whether the gradients of parameters are results of the step. If not, a gradient that an
    update takes in the epilogue of its layer, as on all schedules but the conventional one, never
    reaches DRAM."""
    pinned: Mapping | None = None
    """Tilings and cuts to take as they are; what it lacks is mapped."""

    @property
    def conventional(self) -> CompileOptions:
        """The same step on the schedule that everything is measured against."""
        usual = replace(self, norm="exact", **_NOTHING_CHOSEN)
        return usual if usual == self else replace(usual, pinned=None)

    @property
    def searches(self) -> bool:
        """True when some option is to be chosen by trying."""
        return "auto" in (self.serialize, self.recompute)


_NOTHING_CHOSEN: Any = {
    "serialize": "none",
    "recompute": "none",
    "macs_per_byte": MACS_PER_BYTE,
    "rows": "auto",
    "tiles": None,
    "halves": False,
    "objective": "time",
    "budget": None,
    "interleave": "off",
    "gradients": True,
}


@dataclass(frozen=True)
class Compilation:
    """Everything one compilation made, each stage as it was handed on."""

    options: CompileOptions
    machine: Machine
    model: ReadResult
    step: Graph
    """Forward, loss, backward and update, as the interpreter runs it."""
    primitives: Graph
    """The same step in primitives, before anything was scheduled."""
    lowered: Graph
    """What code was generated from: the primitives, recomputed ones too, in groups."""
    mapping: Mapping
    program: Program
    choice: Choice | None = None
    """How the options that were auto were chosen; those of the compilation are the chosen ones."""


def compile_model(
    model: str | Path | Any,
    options: CompileOptions | None = None,
    progress: Progress | None = None,
    on_graph: GraphWatcher | None = None,
) -> Compilation:
    """Compile an ONNX file (or ModelProto) into the program of one training step.

    `on_graph` sees the graph after reading, after differentiation and after each pass.

    Raises ReadError for a model that is not accepted, MachineError for a machine file that is
    not, MappingError when a layer's smallest tile does not fit the machine.
    """
    with _collector_paused():
        return _compile(
            model, options or CompileOptions(), progress or _tell_nobody, on_graph or _watch_nothing
        )


def _tell_nobody(stage: str, done: int, total: int) -> None:
    """No progress is shown."""


def _watch_nothing(name: str, graph: Graph) -> None:
    """Nobody looks at the graphs in between."""


@contextmanager
def _collector_paused() -> Iterator[None]:
    """No search for cyclic garbage: nearly all objects of a compilation live until its end."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def takes_turns(machine: Machine) -> Machine:
    """The machine; raises MachineError when its PEs cannot take turns with two gradients."""
    if machine.turning_mode is None:
        raise MachineError(
            f"machine {machine.name} has no single array with a mode of dataflow pair, which takes "
            "turns with both gradients element by element; choose one that has, such as "
            "intergrad-128 or ccnn-flex, or --interleave tile"
        )
    return machine


def with_links(machine: Machine) -> Machine:
    """The machine; raises MachineError when it has several arrays and no price for what crosses."""
    if machine.arrays > 1 and "link_byte" not in machine.energy_pj:
        raise MachineError(
            f"machine {machine.name} has {machine.arrays} arrays, and words cross between them; "
            "add energy.link_byte with pj and source to its file"
        )
    return machine


@dataclass(frozen=True)
class _Front:
    """What does not depend on the schedule."""

    machine: Machine
    model: ReadResult
    step: Graph
    primitives: Graph


def _compile(
    model: str | Path | Any, o: CompileOptions, tell: Progress, watch: GraphWatcher
) -> Compilation:
    front = _front(model, o, tell, watch)
    if o.searches:
        return _choose(front, o, tell, watch)
    lowered = prepared(front.primitives, front.machine, o, watch)
    c = _finish(front, lowered, o, tell)
    if c.lowered.groups:
        watch(SerializeMinibatch.name, c.lowered)
    return c


def _front(
    model: str | Path | Any, o: CompileOptions, tell: Progress, watch: GraphWatcher
) -> _Front:
    """Read the model and make its training step in primitives."""
    tell("read", 0, 1)
    machine = with_links(o.target if isinstance(o.target, Machine) else load_machine(o.target))
    machine = takes_turns(machine) if o.interleave == "element" else machine
    read = read_model(
        model,
        ReadOptions(
            batch=o.batch, loss=o.loss, seed=o.seed, dropout=o.dropout, dropout_seed=o.seed
        ),
    )
    if o.norm != "exact":
        read = replace(read, graph=NormPolicy(norm=o.norm)(read.graph))
    watch("read", read.graph)
    tell("differentiate", 0, 1)
    inputs = read.inputs[:1] if o.input_gradient else ()
    step = differentiate(
        read.graph, read.loss, input_gradients=inputs, frozen=o.freeze, optimizer=o.optimizer
    )
    watch("differentiate", step)
    if machine.cores > 1:
        step = run_pipeline(step, (ShareGradients(machine.cores),))
        watch(ShareGradients.name, step)
    tell("lower", 0, 1)
    primitives = run_pipeline(step, DEFAULT, lambda each, graph: watch(each.name, graph))
    return _Front(machine, read, step, primitives)


def _finish(
    front: _Front, lowered: Graph, o: CompileOptions, tell: Progress, known: Graph | None = None
) -> Compilation:
    """Group (where not `known`), map and write the primitives that are to run."""
    context, mapping = grouped_and_mapped(lowered, front.machine, o, tell, known)
    tell("generate", 0, 1)
    program = generate(context, mapping, front.model.graph.name)
    return Compilation(
        o, front.machine, front.model, front.step, front.primitives, context.graph, mapping, program
    )


def _choose(front: _Front, o: CompileOptions, tell: Progress, watch: GraphWatcher) -> Compilation:
    """Compile what the search finds best."""

    def options(c: Candidate) -> CompileOptions:
        return replace(
            o, serialize=c.serialize, recompute=c.recompute, tiles=c.tiles, halves=c.halves
        )

    @cache
    def whole(serialize: Serialization, recompute: Recomputation) -> Graph:
        with_these = replace(o, serialize=serialize, recompute=recompute)
        return prepared(front.primitives, front.machine, with_these, _watch_nothing)

    def again(c: Candidate) -> Graph:  # all that go in sub-batches have the same
        return whole(c.serialize if c.serialize in ("none", "fused") else "best", c.recompute)

    def estimated(c: Candidate) -> float:
        return price(replace(c, halves=False))  # what halves fetch twice is not foreseen

    @cache
    def group(c: Candidate) -> Graph:
        return grouped(again(c), front.machine, options(c), c.tiles or 0.0)

    @cache
    def price(c: Candidate) -> float:
        graph, groups, sizes = again(c), group(c), element_bytes(o)
        macs = count_macs(graph) + macs_made_again(groups)
        work = Work(estimate(groups, sizes).total, macs, 8 * sizes.element)
        return predict(o.objective, front.machine, work)

    def executed(c: Candidate) -> tuple[Compilation, Trace]:
        known = group(c)
        compiled = _finish(front, again(c), options(c), tell, known)
        return compiled, simulate(compiled.program, front.machine)

    listed = candidates(o.serialize, o.recompute, o.objective == "time")
    best, choice = search(listed, o.objective, estimated, executed, o.budget, tell)
    prepared(front.primitives, front.machine, best.options, watch)
    if best.lowered.groups:
        watch(SerializeMinibatch.name, best.lowered)
    return replace(best, choice=choice)
