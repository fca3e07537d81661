"""The search for a schedule: what it tries, what it keeps, and that it never loses."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace

import jsonschema
import numpy as np
import pytest
from onnx import helper, save
from onnx_models import build, r
from reference import DATA

from ccnn.compiler import cli
from ccnn.compiler.choose import (
    KEYS,
    PAIRS,
    RECOMPUTE,
    SERIALIZE,
    TILES,
    Candidate,
    candidates,
    search,
)
from ccnn.compiler.driver import CompileOptions, compile_model
from ccnn.compiler.mapping import MappingError
from ccnn.compiler.report import build_report, report_schema
from ccnn.targets.machine import load_machine
from ccnn.targets.simulator import simulate
from ccnn.targets.verify import verify_program

MODEL = DATA / "resnet8_cifar" / "model.onnx"
SMALL = replace(load_machine("wavecore"), gbuf_bytes=512 * 1024)


@dataclass(frozen=True)
class Took:
    """What a pretended program took."""

    cycles: int
    dram_bytes: int = 0
    energy_pj: float = 0.0


def pretend(took, estimates=None, **options):
    """A search over the whole list; gives what it compiled, its choice, what it executed."""
    listed = candidates("auto", "auto")
    executed = []

    def execute(c):
        executed.append(c)
        if isinstance(took(c), Exception):
            raise took(c)
        return f"program of {c}", took(c)

    compiled, choice = search(
        listed, "time", lambda c: (estimates or took)(c).cycles, execute, **options
    )
    return compiled, choice, executed


def spread(c):
    """Costs that differ for every candidate; the conventional schedule is the most expensive."""
    listed = candidates("auto", "auto")
    return Took(1000 - 7 * listed.index(c))


def test_the_list_is_complete_and_the_conventional_schedule_first():
    listed = candidates("auto", "auto")
    assert listed[0] == Candidate("none", "none")
    assert len(set(listed)) == len(listed)
    assert {c.pair for c in listed} == set(itertools.product(SERIALIZE, RECOMPUTE))
    assert {c.tiles for c in listed if c.serialize != "none"} == set(TILES)
    assert {c.pair for c in candidates("mbs2", "auto")} == {("mbs2", r) for r in RECOMPUTE}
    assert candidates("none", "cheap") == (Candidate("none", "cheap"),)


def test_groups_in_halves_are_listed_where_time_counts():
    listed = candidates("auto", "auto", in_halves=True)
    assert [c for c in listed if not c.halves] == list(candidates("auto", "auto"))
    assert {c.pair for c in listed if c.halves} == {c.pair for c in listed if c.tiles}


def test_right_estimates_lead_to_the_best_of_all():
    compiled, choice, executed = pretend(spread)
    assert choice.best == min(candidates("auto", "auto"), key=lambda c: spread(c).cycles)
    assert compiled == f"program of {choice.best}"
    assert executed[0] == Candidate("none", "none")
    assert len(executed) == len(set(executed)) <= 1 + PAIRS + len(TILES)


def test_what_was_executed_decides_and_not_what_was_estimated():
    liar = {c: Took(n) for n, c in enumerate(candidates("auto", "auto"), 1)}
    _, choice, executed = pretend(spread, liar.__getitem__)
    assert choice.best == min(executed, key=lambda c: spread(c).cycles)
    _, choice, _ = pretend(lambda c: Took(5), liar.__getitem__)
    assert choice.best == Candidate("none", "none")


def test_every_candidate_is_accounted_for():
    _, choice, executed = pretend(spread)
    assert [t.candidate for t in choice.tried] == list(candidates("auto", "auto"))
    for t in choice.tried:
        assert (t.cycles is not None) == (t.candidate in executed) == (t.why_not == "")


@pytest.mark.parametrize("ticks", [0, 1, 5, 40, 60])
def test_a_budget_ends_the_search_and_always_leaves_a_program(ticks):
    clock = itertools.count()
    compiled, choice, executed = pretend(spread, budget_seconds=ticks, clock=clock.__next__)
    whole = pretend(spread)[2]
    assert executed == whole[: len(executed)]
    assert compiled == f"program of {choice.best}"
    if ticks == 0:
        assert executed == [Candidate("none", "none")]
    unfinished = len(executed) < len(whole)
    assert any(t.why_not == "the budget ran out" for t in choice.tried) == unfinished


def test_a_candidate_that_cannot_be_compiled_is_said_and_passed_over():
    best = pretend(spread)[1].best

    def broken(c):
        return MappingError("too large") if c == best else spread(c)

    _, choice, _ = pretend(broken, spread)
    assert choice.best != best
    reasons = {t.candidate: t.why_not for t in choice.tried}
    assert reasons[best] == "cannot be compiled: too large"
    with pytest.raises(MappingError):
        pretend(lambda c: MappingError("nothing fits"), spread)


@pytest.mark.parametrize(
    ("objective", "norm", "shipped"),
    [
        ("time", "exact", False),
        ("traffic", "group", False),
        ("energy", "ghost", False),
        pytest.param("time", "exact", True, marks=pytest.mark.slow),
    ],
)
def test_never_worse_than_the_conventional_schedule(objective, norm, shipped):
    model, machine = (MODEL, SMALL) if shipped else (block(), load_machine("tiny"))
    asked = CompileOptions(
        target=machine, batch=8, norm=norm, serialize="auto", recompute="auto", objective=objective
    )
    c = compile_model(model, asked)
    usual = compile_model(model, replace(asked, serialize="none", recompute="none"))
    trace, before = simulate(c.program, machine), simulate(usual.program, machine)
    key = KEYS[objective]
    assert getattr(trace, key) <= getattr(before, key)
    assert verify_program(c.program, machine) == []
    best = next(t for t in c.choice.tried if t.candidate == c.choice.best)
    assert (best.cycles, best.dram_bytes) == (trace.cycles, trace.dram_bytes)
    assert all(getattr(t, key) >= getattr(trace, key) for t in c.choice.tried if not t.why_not)
    again = compile_model(model, c.options)
    assert again.program == c.program
    assert again.choice is None
    report = build_report(c, trace, before, (), usual.program)
    jsonschema.validate(report, report_schema())
    facts = report["choice"]
    assert facts["gap"] == facts["reached"] / facts["bound"] >= 1
    assert facts["reached"] == getattr(trace, key)


def block():
    """Two convolutions with batch norms and a shortcut, and a classifier."""
    weights = {"w1": r(8, 3, 3, 3), "w2": r(8, 8, 3, 3), "w3": r(4, 8)}
    for n in ("1", "2"):
        weights |= {
            f"{k}{n}": np.full(8, v, np.float32) for k, v in zip("gbmv", (1, 0, 0, 1), strict=True)
        }
    norms = [["1", *(f"{k}1" for k in "gbmv")], ["3", *(f"{k}2" for k in "gbmv")]]
    return build(
        [
            helper.make_node("Conv", ["x", "w1"], ["1"], pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", norms[0], ["n"]),
            helper.make_node("Relu", ["n"], ["2"]),
            helper.make_node("Conv", ["2", "w2"], ["3"], pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", norms[1], ["o"]),
            helper.make_node("Add", ["o", "2"], ["4"]),
            helper.make_node("Relu", ["4"], ["5"]),
            helper.make_node("GlobalAveragePool", ["5"], ["6"]),
            helper.make_node("Flatten", ["6"], ["7"]),
            helper.make_node("Gemm", ["7", "w3"], ["8"], transB=1),
        ],
        {"x": (8, 3, 12, 12)}, ["8"], weights,
    )  # fmt: skip


def test_on_the_command_line(tmp_path, capsys):
    save(block(), tmp_path / "block.onnx")
    command = ["compile", str(tmp_path / "block.onnx"), "-o", str(tmp_path / "out")]
    assert cli.run([*command, "--objective", "traffic", "--recompute", "none"]) == 0
    shown = capsys.readouterr().out
    assert "chosen for traffic: --serialize" in shown
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {t["recompute"] for t in report["choice"]["tried"]} == {"none"}
    (best,) = [t for t in report["choice"]["tried"] if t["best"]]
    assert report["options"]["serialize"] == best["serialize"] != "auto"
    assert best["dram_bytes"] == sum(report["totals"][k] for k in report["choice"]["bound_of"])


def test_what_layers_pays_for_a_byte_is_chosen_on_the_command_line(tmp_path):
    options = ["--batch", "4", "--recompute", "layers", "--norm", "group", "--serialize", "mbs2"]
    macs = []
    for price in (1, 200):
        folder = tmp_path / str(price)
        chosen = ["--macs-per-byte", str(price), "-q", "-o", str(folder)]
        assert cli.run(["compile", str(MODEL), *options, *chosen]) == 0
        report = json.loads((folder / "report.json").read_text())
        assert report["options"]["macs_per_byte"] == price
        macs.append(report["totals"]["macs"])
    assert macs[0] < macs[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--budget", "5"], "add --objective"),
        (["--objective", "time", "--serialize", "best", "--recompute", "none"], "leave out"),
        (["--objective", "time", "--budget", "-1"], "below 0"),
        (["--objective", "time", "--budget", "nan"], "not a finite number"),
        (["--objective", "beauty"], "beauty"),
        (["--macs-per-byte", "60"], "add --recompute layers"),
        (["--macs-per-byte", "0", "--recompute", "layers"], "not above 0"),
    ],
)
def test_contradictions_on_the_command_line(options, said, capsys):
    assert cli.run(["compile", str(MODEL), *options]) == 2
    assert said in capsys.readouterr().err
