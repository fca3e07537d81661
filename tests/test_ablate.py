"""--ablate: the strong baseline and the waterfall, all from executed programs."""

from __future__ import annotations

import json
from dataclasses import replace

import jsonschema
import pytest
from onnx import save
from test_choose import block

from ccnn.compiler import cli
from ccnn.compiler.ablate import WATERFALL_TOTALS, steps_to
from ccnn.compiler.driver import CompileOptions, compile_model
from ccnn.compiler.mapping import Mapping
from ccnn.compiler.report import report_schema
from ccnn.targets.machine import load_machine
from ccnn.targets.simulator import simulate

NAMES = {
    (): ["conventional"],
    ("serialize",): ["conventional", "fused layers", "serialized"],
    ("norm",): ["conventional", "norm"],
    ("recompute",): ["conventional", "recomputed"],
    ("norm", "recompute", "serialize"): [
        "conventional", "fused layers", "norm", "serialized", "recomputed",
    ],
}  # fmt: skip
MACHINE = "name: tiny64\ndescription: d\ninherits: tiny\ngbuf:\n  size_bytes: 65536\n"
VALUES = {"serialize": "mbs2", "norm": "group", "recompute": "cheap"}


@pytest.mark.parametrize("chosen", list(NAMES))
def test_each_step_changes_something_and_the_last_is_the_program(chosen):
    options = CompileOptions(batch=8, **{name: VALUES[name] for name in chosen})
    steps = steps_to(options)
    assert [s.name for s in steps] == NAMES[chosen]
    assert steps[0].options == options.conventional
    assert steps[-1].options == options
    assert len({s.options for s in steps}) == len(steps)


def test_a_searched_schedule_has_steps_too():
    options = CompileOptions(serialize="best", tiles=0.4, objective="energy", budget=9.0)
    *before, last = steps_to(options)
    assert last.options == options
    assert {s.options.budget for s in before} == {None}
    assert before[-1].options.serialize == "fused"


def test_fused_layers_are_a_step_and_not_two():
    names = [s.name for s in steps_to(CompileOptions(serialize="fused", tiles=0.25))]
    assert names == ["conventional", "fused layers", "serialized"]
    assert [s.name for s in steps_to(CompileOptions(serialize="fused"))] == names[:2]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of a small network with everything on."""
    folder = tmp_path_factory.mktemp("ablate")
    save(block(), folder / "block.onnx")
    schedule = ["--serialize", "mbs2", "--recompute", "cheap", "--norm", "group"]
    machine = folder / "tiny64.yaml"
    machine.write_text(MACHINE)
    command = ["compile", str(folder / "block.onnx"), "--target", str(machine), *schedule]
    command.append("--ablate")
    assert cli.run([*command, "-q", "-o", str(folder / "out")]) == 0
    return json.loads((folder / "out" / "report.json").read_text())


def test_the_waterfall_begins_at_the_baseline_and_ends_at_the_totals(report):
    jsonschema.validate(report, report_schema())
    rows = report["waterfall"]
    assert len(rows) == 5
    for key in WATERFALL_TOTALS:
        assert rows[0]["totals"][key] == report["baseline"][key]
        assert rows[1]["totals"][key] == report["strong_baseline"][key]
        assert rows[-1]["totals"][key] == report["totals"][key]


def test_the_strong_baseline_is_an_executed_program(report):
    tiny = replace(load_machine("tiny"), gbuf_bytes=65536)
    options = CompileOptions(target=tiny, serialize="fused")
    c = compile_model(block(), options)
    trace = simulate(c.program, c.machine)
    strong = report["strong_baseline"]
    assert (strong["cycles"], strong["dram_read_bytes"]) == (trace.cycles, trace.dram_read_bytes)
    assert strong["dram_read_bytes"] < report["baseline"]["dram_read_bytes"]
    assert set(strong) == set(report["baseline"])


def test_what_no_step_is_made_for_comes_last():
    options = CompileOptions(serialize="mbs2", pinned=Mapping("wavecore"))
    *before, last = steps_to(options)
    assert last.name == "further options"
    assert last.options == options
    assert before[-1].options == replace(options, pinned=None)


def test_each_option_has_a_step_of_its_own():
    options = CompileOptions(
        serialize="best", recompute="cheap", halves=True, gradients=False, interleave="tile"
    )
    names = [step.name for step in steps_to(options)]
    assert names == [
        "conventional", "fused layers", "serialized", "recomputed", "halves", "unwritten",
        "interleaved",
    ]  # fmt: skip
    assert steps_to(options)[-1].options == options
