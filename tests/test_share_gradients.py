"""Data parallel training: the pass, the machine of two cores, and what it costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ccnn.compiler import CompileOptions, compile_model, verify_values
from ccnn.compiler.report import build_report
from ccnn.passes.autodiff import Optimizer, differentiate
from ccnn.passes.check import verify
from ccnn.passes.graph import Builder, Graph, GraphError
from ccnn.passes.interpret import interpret
from ccnn.passes.share_gradients import ShareGradients, peer
from ccnn.passes.steps import storage_roots
from ccnn.targets.machine import load_machine
from ccnn.targets.program import Load, Store
from ccnn.targets.simulator import simulate
from ccnn.targets.verify import verify_program
from ccnn.targets.verify_common import instructions

MODEL = Path(__file__).parent / "data" / "squeezenet" / "model.onnx"


def step(batch: int, optimizer: Optimizer) -> Graph:
    """Two layers, a mean loss."""
    b = Builder("net")
    x, t = b.input("x", (batch, 5)), b.input("t", (batch,), "index")
    rng = np.random.default_rng(1)
    for name, shape in (("w", (5, 7)), ("v", (7, 3))):
        b.declare(name, shape, "parameter", data=rng.standard_normal(shape))
    h = b.emit("relu", [b.emit("matmul", [x, "w"], trans_a=False, trans_b=False)])
    y = b.emit("matmul", [h, "v"], trans_a=False, trans_b=False)
    loss = b.emit("softmax_cross_entropy", [y, t])
    return differentiate(b.build([y, loss]), loss, optimizer=optimizer)


@pytest.mark.parametrize("cores", [2, 3])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_cores_together_make_the_step_of_the_whole_batch(cores: int, kind: str):
    """Each core's update is that of one core with all samples."""
    optimizer = Optimizer(kind, lr=0.1, momentum=0.9 if kind == "sgd" else 0.0)
    rng = np.random.default_rng(2)
    x, t = rng.standard_normal((4 * cores, 5)), rng.integers(0, 3, 4 * cores)
    whole = step(4 * cores, optimizer)
    want = interpret(whole, {**whole.data, "x": x, "t": t})

    graph = ShareGradients(cores)(step(4, optimizer))
    verify(graph)
    parts = [{"x": x[4 * i : 4 * i + 4], "t": t[4 * i : 4 * i + 4]} for i in range(cores)]
    nothing = {peer(i, p): np.zeros(graph[p].shape) for p in ("w", "v") for i in range(1, cores)}
    plain = step(4, optimizer)
    owns = [interpret(graph, {**graph.data, **nothing, **part}) for part in parts]
    for i, part in enumerate(parts):
        others = {
            peer(j, p): owns[(i + j) % cores][plain.gradients[p]]
            for p in ("w", "v")
            for j in range(1, cores)
        }
        found = interpret(graph, {**graph.data, **others, **part})
        for p in ("w", "v"):
            for made, expected in (
                (found[graph.gradients[p]], want[whole.gradients[p]]),
                (found[graph.updates[p]], want[whole.updates[p]]),
            ):
                np.testing.assert_allclose(made, expected, rtol=1e-12, atol=1e-14)


def test_what_is_not_trained_in_parallel_stays():
    graph = step(4, Optimizer())
    assert ShareGradients(1)(graph) is graph
    forward = Builder("f")
    plain = forward.build([forward.emit("relu", [forward.input("x", (3,))])])
    assert ShareGradients(2)(plain) is plain
    with pytest.raises(GraphError, match="17 cores"):
        ShareGradients(17)


def test_a_chip_is_its_core_twice():
    core, chip = load_machine("wavecore"), load_machine("wavecore-chip")
    assert chip.cores == 2
    assert replace(chip, name=core.name, description=core.description, cores=1) == core
    assert chip.fingerprint != core.fingerprint


def test_the_program_of_a_core_is_safe_right_and_pays_for_the_gradients():
    """Beside wavecore's: each gradient of the other core is read, and the mean is written."""
    options = CompileOptions(target="wavecore-chip", batch=2, dtype="float32")
    chip = compile_model(MODEL, options)
    core = compile_model(MODEL, replace(options, target="wavecore"))
    assert verify_program(chip.program, chip.machine) == []
    assert [e for e in verify_values(chip) if not e.error <= e.bound] == []
    traces = [simulate(c.program, c.machine) for c in (chip, core)]
    trained = [p for p in chip.lowered.updates if chip.lowered[p].role == "parameter"]
    peers = 4 * sum(chip.lowered[p].size for p in trained)
    read = {t.name: t for t in traces[0].tensors}
    assert sum(read[peer(1, p)].read_bytes for p in trained) == peers
    assert traces[0].dram_read_bytes >= traces[1].dram_read_bytes + peers
    assert traces[0].cycles > traces[1].cycles
    notes = build_report(chip, traces[0], traces[0])["notes"]
    assert any("2 cores, and each runs this program on 2 of 4 samples" in note for note in notes)


@pytest.mark.parametrize("serialize", ["none", "fused", "mbs2"])
def test_no_gradient_is_fetched_in_the_kernel_that_makes_it(serialize: str):
    """The other core is as far as this one: it has made its gradient when this one has."""
    options = CompileOptions(target="wavecore-chip", batch=4, serialize=serialize)
    chip = compile_model(MODEL, options)
    assert verify_program(chip.program, chip.machine) == []
    plain = [n for n in chip.lowered.nodes if any(i.startswith("peer1/") for i in n.inputs)]
    own = {next(i for i in n.inputs if i.startswith("peer1/")): n.inputs[0] for n in plain}
    root, made = storage_roots(chip.lowered), dict[str, int]()
    fetched: dict[str, int] = {}
    for place, kernel in enumerate(chip.program.kernels):
        for i, _ in instructions(kernel):
            if isinstance(i, Store):
                made[root.get(i.tensor, i.tensor)] = place
            elif isinstance(i, Load) and i.tensor in own:
                fetched[i.tensor] = place
    assert set(fetched) == set(own)
    assert all(made[root[own[name]]] < place for name, place in fetched.items())
