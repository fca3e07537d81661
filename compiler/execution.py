"""A compiled step on the simulated machine: its results, and how right they are."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ccnn.compiler.schedule import Progress
from ccnn.passes.graph import Tensor
from ccnn.passes.interpret import interpret
from ccnn.targets.simulator import Execution

if TYPE_CHECKING:
    from ccnn.compiler.driver import Compilation


def start(c: Compilation, inputs: MappingType[str, np.ndarray], poison: bool = False) -> Execution:
    """A machine with the program loaded, and all parameters, state, constants and inputs set."""
    run = Execution(c.program, c.machine, poison)
    for tensor in c.lowered.tensors.values():
        if tensor.role == "input":
            run.write(tensor.name, inputs[tensor.name])
        elif tensor.role != "value":
            run.write(tensor.name, c.lowered.data[tensor.name])
    return run


def results(c: Compilation, run: Execution, step: int) -> dict[str, np.ndarray]:
    """What a step left behind, under the names results are saved by (w1/NAME after step 1 …)."""
    graph = c.lowered
    found: dict[str, np.ndarray] = {}
    suffix = "" if step == 1 else str(step)
    found[f"loss{suffix}"] = run[c.model.loss]
    if step == 1:
        if c.model.outputs:  # a model that ends in its loss has no other
            found["output"] = run[c.model.outputs[0]]
        for name, gradient in graph.gradients.items():
            role = graph[name].role
            key = f"grad/{name}" if role == "parameter" else "grad_input"
            found[key] = run[gradient]
    for name, new in graph.updates.items():
        role = graph[name].role
        if role == "parameter":
            found[f"w{step}/{name}"] = run[new]
        elif step == 1 and name in c.model.graph.tensors:  # else the optimizer's own state
            found[f"bn{step}/{name}"] = run[new]
    return {k: _plain(v) for k, v in found.items()}


def _plain(value: np.ndarray) -> np.ndarray:
    return value if value.dtype in (np.float64, np.float32) else value.astype(np.float32)


def run_steps(
    c: Compilation,
    inputs: MappingType[str, np.ndarray],
    steps: int = 2,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Execute training steps on one batch; keys loss, output, grad/NAME, w1/NAME, bn1/NAME,
    grad_input (when compiled with it), and loss2, w2/NAME … of later steps."""
    run = start(c, inputs)
    found: dict[str, np.ndarray] = {}
    for step in range(1, steps + 1):
        if progress:
            progress("execute", step - 1, steps)
        run.step()
        found.update(results(c, run, step))
    return found


@dataclass(frozen=True)
class TensorError:
    """How far an executed tensor is from the interpreter's, and how far it may be."""

    name: str
    error: float
    bound: float


def random_inputs(c: Compilation, seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded values for the model's inputs: normal, and for class indices any class."""
    rng = np.random.default_rng(seed)
    values: dict[str, np.ndarray] = {}
    losses = (n for n in c.model.graph.nodes if n.op == "softmax_cross_entropy")
    classes = min((c.model.graph[n.inputs[0]].shape[1] for n in losses), default=1)
    for tensor in c.lowered.of_role("input"):
        if tensor.dtype == "index":
            values[tensor.name] = rng.integers(0, classes, tensor.shape)
        else:
            values[tensor.name] = rng.standard_normal(tensor.shape)
    return values


_UNIT = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-8, "float16": 2.0**-11}


def verify_values(
    c: Compilation, seed: int = 0, progress: Progress | None = None
) -> list[TensorError]:
    """Execute one step on seeded data and compare every result with the interpreter in float64.

    The bound is what rounding alone may do: the interpreter is run once more with every tensor
    disturbed by up to four units in the last place of the program's precision as it is made, and
    an error may be eight times what that did to the tensor.  Intermediate tensors have to be
    disturbed too: in deep networks rounding moves a few units across a ReLU's kink, which no
    small change of the parameters shows.  Whole numbers among the constants are what they are
    (x^2 would be no number for negative x), and a cross-entropy near zero is the difference of
    two scores, of which it keeps a unit.
    """
    values = random_inputs(c, seed)
    got = run_steps(c, values, 1, progress)
    known = {**c.step.data, **values}
    unit = _UNIT[c.options.dtype]
    rng = np.random.default_rng(seed + 1)
    if progress:
        progress("interpret", 0, 2)
    scores: dict[str, float] = {}
    want = _expected(c, known, _measure_scores(c, scores))

    def disturb(tensor: Tensor, value: np.ndarray) -> np.ndarray:
        spread = 4 * rng.uniform(-1, 1, value.shape)
        if tensor.name in scores:  # they are kept as sums are
            return value + min(unit, _UNIT["float32"]) * scores[tensor.name] * spread
        if tensor.dtype != "float" or (tensor.role == "constant" and _whole(value)):
            return value
        return value * (1 + unit * spread)

    shaken = {
        name: disturb(c.step[name], np.asarray(value, np.float64))
        if c.step[name].dtype == "float"
        else value
        for name, value in known.items()
    }
    if progress:
        progress("interpret", 1, 2)
    moved = _expected(c, shaken, disturb)
    largest = max(
        (float(np.abs(v).max(initial=0)) for k, v in want.items() if k.startswith("grad/")),
        default=0.0,
    )
    errors = []
    for key, value in got.items():
        scale = float(np.abs(want[key]).max(initial=0.0))
        if key.startswith("grad/") and scale < 1e-9 * largest:
            scale = largest  # zero in exact arithmetic: what is left is rounding
        scale = scale or 1.0
        error = float(np.abs(value - want[key]).max(initial=0.0)) / scale
        sensitivity = float(np.abs(moved[key] - want[key]).max(initial=0.0)) / scale
        errors.append(TensorError(key, error, 16 * unit + 8 * sensitivity))
    return sorted(errors, key=lambda e: -e.error / e.bound)


def _measure_scores(
    c: Compilation, scores: dict[str, float]
) -> Callable[[Tensor, np.ndarray], np.ndarray]:
    """What notes, while a graph is interpreted, the largest log Σ e^score and what it is behind."""
    sums = {
        n.outputs[2 if n.attr("log_prob", False) else 1]: n.outputs[0]
        for n in c.step.nodes
        if n.op == "softmax_cross_entropy"
    }

    def measure(tensor: Tensor, value: np.ndarray) -> np.ndarray:
        if tensor.name in sums:
            scores[tensor.name] = scores[sums[tensor.name]] = float(np.abs(value).max(initial=1.0))
        return value

    return measure


def _whole(value: np.ndarray) -> bool:
    """True for small integers, which every precision holds exactly."""
    return bool(np.all((value == np.rint(value)) & (np.abs(value) <= 128)))


def _expected(
    c: Compilation,
    values: MappingType[str, np.ndarray],
    disturb: Callable[[Tensor, np.ndarray], np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """The keys of `results` for step 1, from the interpreter."""
    graph = c.step
    keys = {"loss": c.model.loss, **dict(zip(("output",), c.model.outputs, strict=False))}
    for name, gradient in graph.gradients.items():
        keys[f"grad/{name}" if graph[name].role == "parameter" else "grad_input"] = gradient
    for name, new in graph.updates.items():
        if graph[name].role == "parameter":
            keys[f"w1/{name}"] = new
        elif name in c.model.graph.tensors:
            keys[f"bn1/{name}"] = new
    found = interpret(graph, values, keep=set(keys.values()), disturb=disturb)
    return {key: found[tensor] for key, tensor in keys.items()}
