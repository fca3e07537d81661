"""explain, advise and diff: what they say follows from executing, and the commands keep to it."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from ccnn.compiler import CompileOptions, cli, compile_model
from ccnn.compiler.advise import PARAMETERS, Advice, Outcome, Trial, advise, changed, conclusion
from ccnn.compiler.cli_insight import advise_command
from ccnn.compiler.diff import JUDGED, compare
from ccnn.compiler.driver import Compilation
from ccnn.compiler.explain import VARIATIONS, explain_node, explanation_json
from ccnn.compiler.explain_block import Block, next_tilings
from ccnn.compiler.failure import Failure
from ccnn.compiler.report import build_report
from ccnn.targets.machine import load_machine
from ccnn.targets.simulator import simulate
from ccnn.targets.verify import verify_program

MODEL = Path(__file__).parent / "data" / "resnet8_cifar" / "model.onnx"
CONV = "/features/stage2/unit1/body/conv1/conv/Conv"


@pytest.fixture(scope="module")
def compilation():
    return compile_model(MODEL, CompileOptions(batch=4))


@pytest.fixture(scope="module")
def trace(compilation):
    return simulate(compilation.program, compilation.machine)


@pytest.fixture(scope="module")
def report(compilation, trace):
    return build_report(compilation, trace, trace)


@pytest.fixture(scope="module")
def told():
    """What was said of the progress while the layer was explained."""
    return []


@pytest.fixture(scope="module")
def explanation(compilation, trace, told):
    return explain_node(compilation, CONV, trace, lambda *words: told.append(words))


def test_explaining_says_how_far_it_is(explanation, told):
    parts = len(VARIATIONS) + 1
    kernels = len({story.detail.start for story in explanation.kernels})
    assert told == [("executing its kernels", n, kernels * parts) for n in range(kernels * parts)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Compilations for batches of 2 and 4."""
    root = tmp_path_factory.mktemp("folders")
    made = []
    for batch in (2, 4):
        folder = root / str(batch)
        assert cli.run(["compile", str(MODEL), "--batch", str(batch), "-q", "-o", str(folder)]) == 0
        made.append(folder)
    return made[0], made[1]


# explain


def test_an_explanation_covers_what_the_report_charges_to_the_layer(explanation, report):
    rows = [r for r in report["layers"] if r["node"] == CONV]
    kernels = explanation.kernels
    assert {k.phase for k in kernels} == {"forward", "backward"}
    assert sum(k.detail.counts.macs for k in kernels) == sum(r["macs"] for r in rows)
    read = sum(k.detail.counts.dram_read_bytes for k in kernels)
    assert read == sum(r["dram_read_bytes"] for r in rows)
    barriers = sum(r["cycles"] for r in rows) - explanation.cycles
    assert 0 <= barriers <= 100 * len(kernels)


def test_what_if_is_what_the_changed_machine_takes(compilation, explanation):
    story = explanation.kernels[0]
    faster = next(w for w in story.what_if if w.name == "DRAM bandwidth x 2")
    machine = compilation.machine
    machine = replace(machine, dram_bandwidth_gib_s=2 * machine.dram_bandwidth_gib_s)
    kernel = next(k for k in compilation.program.kernels if k.name == story.detail.name)
    alone = simulate(replace(compilation.program, kernels=(kernel,)), machine)
    assert faster.cycles == alone.cycles <= story.detail.cycles


def test_what_bounds_a_kernel_is_the_change_that_saves_most(explanation):
    for story in explanation.kernels:
        known = [w for w in story.what_if if w.cycles is not None]
        best = min(known, key=lambda w: w.cycles)
        if best.cycles < 0.98 * story.detail.cycles:
            assert story.bound_by.startswith(f"{best.relieves}: ")
        else:
            assert story.bound_by.startswith("its own order")
    assert {v.relieves for v in VARIATIONS} >= {"DRAM bandwidth", "DRAM latency", "array"}


def test_the_runner_up_is_another_tiling_that_was_executed(compilation, explanation):
    for story in explanation.kernels:
        assert story.runner_up is not None
        assert story.runner_up.cycles > 0
        chosen = str(story.tiling).split(" tiles ")[1].split(" dram ")[0]
        assert story.runner_up.tiling.split(" tiles ")[1] != chosen


def test_next_tilings_differ_from_the_chosen_and_from_each_other(compilation):
    from ccnn.compiler.codegen import gemm_of, make_context

    context = make_context(compilation.lowered, compilation.machine, "bfloat16")
    node = next(n for n in compilation.lowered.nodes if n.op == "conv")
    chosen = compilation.mapping.tilings[node.name]
    found = next_tilings(gemm_of(context, node), compilation.machine, chosen, 3)
    keys = [tuple(sorted(t.tiles)) for t in (chosen, *found)]
    assert len(found) == 3
    assert len(set(keys)) == 4


def test_an_unknown_node_gets_the_names_that_are_close(compilation):
    with pytest.raises(Failure, match=r"did you mean .*stage2/unit1"):
        explain_node(compilation, "stage2/unit1")
    with pytest.raises(Failure, match="has no node 'zzz'"):
        explain_node(compilation, "zzz")


@pytest.fixture(scope="module")
def in_groups() -> Compilation:
    small = replace(load_machine("wavecore"), gbuf_bytes=2**20)
    return compile_model(MODEL, CompileOptions(small, 32, norm="group", serialize="mbs2"))


def test_a_group_written_once_more_is_the_group(in_groups):
    c = in_groups
    blocks = [(kernel, Block.of(c, kernel, c.machine)) for kernel in c.program.kernels]
    groups = [(kernel, block) for kernel, block in blocks if block]
    assert len(groups) == len(c.lowered.groups) > 0
    for kernel, block in groups:
        assert block.write(c.mapping) == kernel
        assert block.write(block.mapped(c.options.mapper)) == kernel


@pytest.mark.slow
def test_in_a_group_the_runner_up_and_what_would_help_are_the_groups(in_groups):
    """Other tiles of one node, executed with the whole group around it."""
    c = in_groups
    trace = simulate(c.program, c.machine)
    found = explain_node(c, CONV, trace)
    assert found.cycles == sum(layer.cycles for layer in trace.layers if layer.origin == CONV)
    assert {s.op for s in found.kernels if s.shared_with} >= {"conv", "conv_dx", "conv_dw"}
    for story in found.kernels:
        if not story.shared_with:
            continue
        kernel = next(k for k in c.program.kernels if k.name in (story.node, *story.shared_with))
        block = Block.of(c, kernel, c.machine)
        assert block is not None
        assert story.own_cycles <= story.layer_cycles < story.detail.cycles
        assert all(w.cycles is not None for w in story.what_if)
        node = next(n for n in c.lowered.nodes if n.name == story.node)
        assert story.tiling is not None
        for tiling, write in block.others(c.mapping, node, story.tiling, 2):
            assert tiling.tiles != story.tiling.tiles
            others = [write() if k is kernel else k for k in c.program.kernels]
            assert verify_program(replace(c.program, kernels=tuple(others)), c.machine) == []
        runner = story.runner_up
        assert runner is not None
        assert runner.cycles >= 0.9 * story.detail.cycles  # of the group, not of the node alone


def test_explain_prints_text_and_json(capsys, explanation):
    base = ["explain", str(MODEL), CONV, "--batch", "4", "-q"]
    assert cli.run([*base, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(
        json.dumps(explanation_json(explanation))
    )
    assert cli.run(base[:-1]) == 0
    text = capsys.readouterr().out
    for words in ("bound by", "runner-up", "tiles", "GBUF", "what if", f"{explanation.cycles:,}"):
        assert words in text


# advise


def test_the_choices_of_only_are_the_parameters():
    only = next(p for p in advise_command.params if p.name == "parameters")
    assert list(only.type.choices) == list(PARAMETERS)


def test_a_changed_machine_differs_in_that_parameter_only():
    machine = load_machine("wavecore")
    for parameter, fields in PARAMETERS.items():
        made = changed(machine, parameter, Fraction(2))
        assert made is not None
        for field in fields:
            assert getattr(made, field) == 2 * getattr(machine, field)
        back = replace(made, **{field: getattr(machine, field) for field in fields})
        assert back == machine
    assert changed(replace(machine, barrier_cycles=0), "barrier_cycles", Fraction(2)) is None
    assert changed(replace(machine, lanes=1), "lanes", Fraction(1, 2)) is None


def test_trials_are_compiled_and_executed_for_the_changed_machine():
    found = advise(MODEL, CompileOptions(batch=2), ("dram_bandwidth_gib_s",))
    machine = load_machine("wavecore")
    for trial in found.trials:
        other = changed(machine, "dram_bandwidth_gib_s", Fraction(trial.factor))
        c = compile_model(MODEL, CompileOptions(batch=2, target=other))
        assert trial.outcome is not None
        assert trial.outcome.cycles == simulate(c.program, other).cycles
    slow, fast = found.trials
    assert slow.outcome.cycles > found.base.cycles > fast.outcome.cycles


def test_the_conclusion_names_the_best_and_what_lies_idle():
    base = Outcome(1.0, 100, 10, 5.0)
    trials = (
        Trial("lanes", 0.5, "1", replace(base, seconds=1.0)),
        Trial("lanes", 2.0, "4", replace(base, seconds=0.99)),
        Trial("gbuf_bytes", 2.0, "8", replace(base, seconds=0.7)),
        Trial("gbuf_bytes", 0.5, "2", None, "does not fit"),
    )
    words = conclusion(Advice("m", base, trials))
    assert words.startswith("gbuf_bytes x 2 saves most: 30.0 %")
    assert words.endswith("half would do of lanes")
    assert "no single parameter" in conclusion(Advice("m", base, trials[:1]))


def test_advise_prints_each_trial(capsys):
    base = ["advise", str(MODEL), "--batch", "2", "--only", "lanes", "-q"]
    assert cli.run([*base, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert [(t["parameter"], t["factor"]) for t in made["trials"]] == [("lanes", 0.5), ("lanes", 2)]


# diff


def test_a_report_does_not_differ_from_itself(report, compilation):
    found = compare(report, report, compilation.mapping, compilation.mapping)
    assert found.nothing
    assert found.worse(0) == ()


def test_differences_are_named_by_layer_and_figure(report):
    other = json.loads(json.dumps(report))
    row = other["layers"][2]
    row["cycles"] += 50
    other["totals"]["cycles"] += 50
    other["layers"].append({**other["layers"][0], "node": "extra"})
    del other["layers"][1]
    found = compare(report, other)
    (change,) = found.layers
    assert (change.node, change.phase) == (row["node"], row["phase"])
    assert [c.key for c in change.changes] == ["cycles"]
    assert found.added == ("extra (forward)",)
    assert len(found.removed) == 1
    assert [c.key for c in found.worse(0)] == ["cycles"]
    assert found.worse(found.totals[0].percent + 1e-9) == ()
    assert set(JUDGED) <= set(report["totals"])


def test_diff_fails_only_when_the_second_is_worse(folders, capsys):
    small, large = map(str, folders)
    assert cli.run(["diff", small, large, "-q"]) == 1
    assert "is worse than" in capsys.readouterr().err
    assert cli.run(["diff", large, small]) == 0
    assert "model batch: 4 -> 2" in capsys.readouterr().out
    assert cli.run(["diff", small, large, "--threshold", "1000", "-q"]) == 0
    assert cli.run(["diff", small, small]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert cli.run(["diff", small, large, "--json"]) == 1
    made = json.loads(capsys.readouterr().out)
    assert made["same"] is False
    assert "cycles" in made["worse"]


# report --html and --dump-passes


def test_the_page_can_be_made_again_from_the_folder(folders, capsys, tmp_path):
    folder = folders[0]
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    assert cli.run(["report", str(folder), "--html"]) == 0
    assert "report.html (" in capsys.readouterr().out
    assert (folder / "report.html").read_bytes() == before


def test_a_page_for_another_machine_is_refused(folders, capsys):
    assert cli.run(["report", str(folders[0]), "--html", "--target", "tiny", "-q"]) == 4
    assert "fingerprint" in capsys.readouterr().err


def test_dump_passes_writes_a_graph_for_each_pass(tmp_path, capsys):
    folder = tmp_path / "graphs"
    command = ["compile", str(MODEL), "--batch", "1", "-q", "-o", str(tmp_path / "out")]
    assert cli.run([*command, "--dump-passes", str(folder)]) == 0
    names = sorted(p.name for p in folder.iterdir())
    assert names[:3] == ["00-read.ccnn", "01-differentiate.ccnn", "02-simplify.ccnn"]
    file = tmp_path / "file"
    file.write_text("")
    assert cli.run([*command, "--dump-passes", str(file)]) == 5
    assert str(file) in capsys.readouterr().err
