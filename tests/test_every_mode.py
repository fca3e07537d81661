"""Every mode of the flexible machines runs in whole networks, with values within the bounds of
test_truth; which ones these are is read from the executed trace."""

from __future__ import annotations

from dataclasses import replace

import pytest
from reference import DATA
from test_array_modes import execute, gemm_graph
from test_truth import check_float64

from ccnn.compiler import CompileOptions, compile_model, verify_values
from ccnn.compiler.codegen import generate, make_context
from ccnn.compiler.mapper import map_graph
from ccnn.compiler.mapping import Tiling
from ccnn.targets.machine import load_machine
from ccnn.targets.simulator import simulate
from ccnn.targets.verify import verify_program

NETWORKS = {
    "flexsa-1g1f": (("resnet8_cifar", "tile"),),
    "intergrad-32": (("resnet8_cifar", "element"),),
    "ccnn-flex": (("resnet8_cifar", "tile"), ("convnext", "element")),
}
"""Those that a machine needs to run in all of its modes, and how gradients are interleaved."""
NEVER = {
    "ISW": "AlexNet, MobileNet-v2 and VGG have such blocks, and are none of the shipped networks",
    "OS": "what it holds takes no longer weight-stationary in sub-waves, and leaves sooner",
}
"""Modes of ccnn-flex that no shipped network runs in, and why; forced below.  OS is in none of the
larger corpus either."""


@pytest.mark.parametrize(
    "target",
    [pytest.param(t, marks=pytest.mark.slow if t == "ccnn-flex" else ()) for t in NETWORKS],
)
def test_networks_run_in_every_mode(target: str):
    seen: set[str] = set()
    for name, how in NETWORKS[target]:
        c = check_float64(DATA / name / "model.onnx", target, interleave=how)
        seen |= {mode for mode, _ in simulate(c.program, c.machine).modes}
    every = {mode.name for mode in load_machine(target).modes}
    assert seen == every - (set(NEVER) if target == "ccnn-flex" else set())


def test_square_blocks_run_in_independent_sub_waves():
    """64 x 64 weights, as pointwise convolutions of 64 channels have them."""
    machine = load_machine("ccnn-flex")
    graph = gemm_graph(2048, 64, 64)
    context = make_context(graph, machine, "float32")
    program = generate(context, map_graph(context))
    execute(graph, program, machine)
    assert {mode for mode, _ in simulate(program, machine).modes} == {"ISW"}


@pytest.mark.slow
def test_a_network_keeps_results_where_a_mapping_says_so():
    """Every GEMM of ResNet-8 that may, with its result staying in the array."""
    path = DATA / "resnet8_cifar" / "model.onnx"
    options = CompileOptions(target="ccnn-flex", batch=2, dtype="float32")
    first = compile_model(path, options)

    def kept(tiling: Tiling) -> Tiling:
        return replace(tiling, flow="result stays", pieces=1)

    tilings = {name: kept(tiling) for name, tiling in first.mapping.tilings.items()}
    pinned = replace(first.mapping, tilings=tilings, cuts={})
    c = compile_model(path, replace(options, pinned=pinned))
    assert verify_program(c.program, c.machine) == []
    assert {mode for mode, _ in simulate(c.program, c.machine).modes} == {"OS"}
    assert [e for e in verify_values(c) if not e.error <= e.bound] == []
