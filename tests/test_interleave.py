"""Interleaved gradients in compiled steps: dY fetched once, values kept, chosen where it pays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ccnn.compiler import CompileOptions, cli, compile_model, verify_values
from ccnn.compiler.driver import Compilation
from ccnn.passes.batch_axis import batch_axis
from ccnn.passes.interleave_gradients import gradient_pairs
from ccnn.targets.machine import load_machine
from ccnn.targets.program import DTYPE_BYTES
from ccnn.targets.simulator import Trace, simulate
from ccnn.targets.verify import verify_program

RESNET = Path(__file__).parent / "data" / "resnet8_cifar" / "model.onnx"
SMALL = replace(load_machine("wavecore"), gbuf_bytes=2**18)


def compiled(interleave: str, **options) -> tuple[Compilation, Trace]:
    c = compile_model(RESNET, CompileOptions(interleave=interleave, **{"target": SMALL, **options}))
    assert verify_program(c.program, c.machine) == []
    return c, simulate(c.program, c.machine)


def read_by(c: Compilation, tensor: str, ops: tuple[str, ...]) -> int:
    """Bytes of a tensor that the kernels of these ops fetch from DRAM."""
    numbers = {i for i, ref in enumerate(c.program.nodes) if ref.op in ops}
    kernels = tuple(
        k for k in c.program.kernels
        if any(c.program.nodes[i].name == k.name for i in numbers)
    )  # fmt: skip
    trace = simulate(replace(c.program, kernels=kernels), c.machine)
    return next((t.read_bytes for t in trace.tensors if t.name == tensor), 0)


def test_each_dy_is_fetched_once():
    """By the kernels of both gradients together, where the buffer holds it only in parts."""
    ops = ("conv_dx", "conv_dw")
    apart, _ = compiled("off", batch=16)
    paired, _ = compiled("tile", batch=16)
    pairs = gradient_pairs(apart.lowered, batch_axis(apart.lowered))
    convs = [p for p in pairs if {n.op for n in p.nodes} == set(ops)]
    assert len(convs) == 8
    looped = {g.nodes[0] for g in paired.lowered.groups if g.sub_batch}
    assert looped
    for pair in convs:
        tensor = apart.lowered[pair.dy]
        size = DTYPE_BYTES["bf16"]
        for n in tensor.shape:
            size *= n
        assert read_by(apart, pair.dy, ops) >= 2 * size
        # 3 x 3 filters reach beyond planes, which then are loaded with their margins
        if {n.op for n in pair.nodes} == set(ops) and paired.lowered.groups:
            assert read_by(paired, pair.dy, ops) == size, pair


@pytest.mark.parametrize(
    "target", ["wavecore", pytest.param("intergrad-32", marks=pytest.mark.slow)]
)
def test_auto_takes_no_more_than_either(target: str):
    """Kernels meet at barriers, so what each takes adds up."""
    cycles, pairs = {}, {}
    forms = ("tile", "element") if target == "intergrad-32" else ("tile",)
    for interleave in ("off", *forms, "auto"):
        c, trace = compiled(interleave, target=target, batch=16)
        cycles[interleave], pairs[interleave] = trace.cycles, len(c.lowered.groups)
        chosen = {group.interleaved for group in c.lowered.groups}
    assert cycles["auto"] <= min(cycles.values())
    assert pairs["off"] == 0 < pairs["auto"] <= pairs["tile"]
    assert chosen == {form == "element" for form in forms}


@pytest.mark.parametrize("serialize", ["none", "mbs2"])
def test_values_are_those_of_the_graph(serialize: str):
    c, _ = compiled("tile", batch=6, dtype="float32", serialize=serialize)
    assert c.lowered.groups
    assert [e for e in verify_values(c) if not e.error <= e.bound] == []


def test_groups_that_were_there_stay():
    without, _ = compiled("off", batch=6, serialize="mbs2", norm="group")
    with_pairs, _ = compiled("tile", batch=6, serialize="mbs2", norm="group")
    assert with_pairs.lowered.groups[: len(without.lowered.groups)] == without.lowered.groups


def test_the_baseline_of_a_report_has_no_interleaving():
    options = CompileOptions(interleave="tile")
    assert options.conventional.interleave == "off"


def test_the_command(tmp_path: Path):
    command = ["compile", str(RESNET), "--batch", "8", "-q", "-o", str(tmp_path)]
    assert cli.run([*command, "--interleave", "tile"]) == 0
    assert "group /" in (tmp_path / "mapping.txt").read_text(encoding="utf-8")


def test_auto_takes_its_own_mapping_back():
    """Pairs are tried without it: it names GEMMs of the pairs that were kept only."""
    c, _ = compiled("auto", target="intergrad-32", batch=4)
    assert {group.interleaved for group in c.lowered.groups} == {False, True}
    again, _ = compiled("auto", target="intergrad-32", batch=4, pinned=c.mapping)
    assert again.program == c.program
