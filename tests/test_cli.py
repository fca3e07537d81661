"""The command: options, exit codes, messages, files.  Bad models and machines are tested apart."""

from __future__ import annotations

import errno
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from ccnn.compiler import cli, files
from ccnn.compiler.failure import MEANING, ExitCode, Failure, explain
from ccnn.compiler.files import output_folder, write_file
from ccnn.compiler.options import LEARNING_RATE
from ccnn.compiler.progress import plain_progress
from ccnn.passes.autodiff import Optimizer

CCNN = [sys.executable, "-m", "ccnn.compiler"]
WRITTEN = {
    "program.asm", "program.bin", "mapping.txt", "report.json", "layers.csv", "report.html",
    "trace.pftrace", "model.annotated.onnx",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """One convolution, a ReLU, a pooled classifier: four samples of 2x6x6."""
    rng = np.random.default_rng(7)
    weights = {
        "conv.weight": rng.standard_normal((4, 2, 3, 3)).astype(np.float32) / 4,
        "fc.weight": rng.standard_normal((3, 4)).astype(np.float32) / 2,
        "fc.bias": np.zeros(3, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "conv.weight"], ["a"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], "pool"),
        helper.make_node("Flatten", ["c"], ["d"], "flatten"),
        helper.make_node("Gemm", ["d", "fc.weight", "fc.bias"], ["e"], "fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [4, 2, 6, 6])],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, [4, 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def inputs(model) -> Path:
    """Data that fits the small model."""
    path = model.parent / "inputs.npz"
    rng = np.random.default_rng(8)
    np.savez(path, input=rng.standard_normal((4, 2, 6, 6)), target=np.array([0, 1, 2, 1]))
    return path


@pytest.fixture
def ccnn(capsys):
    """Run the command in this process; gives exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.run([str(a) for a in arguments])
        captured = capsys.readouterr()
        return int(code), captured.out, captured.err

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Name to content of every file in a folder."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# What works


def test_compile_writes_its_files_and_says_so(ccnn, model, tmp_path):
    out = tmp_path / "a" / "out"
    code, text, progress = ccnn("compile", model, "--target", "tiny", "-o", out)
    assert code == 0
    assert {p.name for p in out.iterdir()} == WRITTEN
    for name in WRITTEN:
        assert f"{name} (" in text
    for words in ("assumed:", "totals", "bound", "baseline", "worst", "tiny"):
        assert words in text
    assert "simulating" in progress
    assert "Traceback" not in progress


def test_compile_twice_gives_the_same_bytes(ccnn, model, tmp_path):
    for name in ("one", "two"):
        assert ccnn("compile", model, "--target", "tiny", "-q", "-o", tmp_path / name)[0] == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_json_without_a_folder_writes_nothing(ccnn, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, _ = ccnn("compile", model, "--target", "tiny", "--json", "-q")
    assert code == 0
    assert json.loads(text)["schema_version"] == 1
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_is_ccnn_out(ccnn, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ccnn("compile", model, "--target", "tiny", "-q")[0] == 0
    assert {p.name for p in (tmp_path / "ccnn-out").iterdir()} == WRITTEN


def test_quiet_says_nothing(ccnn, model, tmp_path):
    assert ccnn("compile", model, "--target", "tiny", "-q", "-o", tmp_path) == (0, "", "")


def test_what_was_given_is_not_called_assumed(ccnn, model):
    given = ("--target", "tiny", "--dtype", "float32", "--lr", "0.1", "--momentum", "0.9")
    _, text, _ = ccnn("compile", model, *given, "--json", "-q")
    assumed = " ".join(json.loads(text)["assumed_defaults"])
    assert "--target" not in assumed
    assert "--dtype" not in assumed
    assert "--lr" not in assumed
    assert "--momentum" not in assumed
    assert "--optimizer" in assumed


def test_report_prints_again_what_compile_printed(ccnn, model, tmp_path):
    _, first, _ = ccnn("compile", model, "--target", "tiny", "-o", tmp_path)
    code, again, _ = ccnn("report", tmp_path)
    assert code == 0
    assert first.startswith(again)
    assert (
        ccnn("report", tmp_path, "--json")[1]
        == ccnn("compile", model, "--target", "tiny", "--json", "-q")[1]
    )


@pytest.mark.parametrize("suffix", ["asm", "bin"])
def test_simulate_finds_the_same_totals(ccnn, model, tmp_path, suffix):
    ccnn("compile", model, "--target", "tiny", "-q", "-o", tmp_path)
    code, text, _ = ccnn("simulate", tmp_path / f"program.{suffix}", "--json", "-q")
    assert code == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert json.loads(text)["totals"] == report["totals"]
    code, text, _ = ccnn("simulate", tmp_path / f"program.{suffix}")
    assert code == 0
    assert f"{report['totals']['cycles']:,}" in text


def test_run_saves_every_result(ccnn, model, inputs, tmp_path):
    out = tmp_path / "results.npz"
    code, text, _ = ccnn(
        "run", model, "--inputs", inputs, "--target", "tiny", "--lr", "0.1", "--save-results", out
    )
    assert code == 0
    names = ("conv.weight", "fc.weight", "fc.bias")
    with np.load(out) as results:
        expected = {"loss", "output", "loss2", "grad_input"}
        expected |= {f"{kind}/{n}" for kind in ("grad", "w1", "w2") for n in names}
        assert set(results.files) == expected
        assert results["loss2"] < results["loss"]
        assert f"{float(results['loss']):.9g}" in text
        # sgd: w1 = w0 - lr * grad, and the bias starts at zero
        np.testing.assert_allclose(
            results["w1/fc.bias"], -0.1 * results["grad/fc.bias"], rtol=1e-6, atol=1e-9
        )


def test_one_step_has_no_second_loss(ccnn, model, inputs, tmp_path):
    out = tmp_path / "results.npz"
    args = ("--inputs", inputs, "--target", "tiny", "--steps", 1, "-q", "--save-results", out)
    assert ccnn("run", model, *args) == (0, "", "")
    with np.load(out) as results:
        assert "loss" in results.files
        assert "loss2" not in results.files


def test_run_takes_the_batch_from_the_data(ccnn, model, tmp_path):
    np.savez(tmp_path / "in.npz", input=np.ones((2, 2, 6, 6)), target=np.array([0, 1]))
    args = ("--inputs", tmp_path / "in.npz", "--target", "tiny", "-q")
    assert ccnn("run", model, *args, "--save-results", tmp_path / "out.npz")[0] == 0
    with np.load(tmp_path / "out.npz") as results:
        assert results["output"].shape == (2, 3)


def test_a_frozen_parameter_stays(ccnn, model, inputs, tmp_path):
    args = ("--inputs", inputs, "--target", "tiny", "-q", "--save-results", tmp_path / "r.npz")
    assert ccnn("run", model, *args, "--freeze", "conv.*")[0] == 0
    with np.load(tmp_path / "r.npz") as results:
        assert "grad/conv.weight" not in results.files
        assert "grad/fc.weight" in results.files


def test_verify_finds_a_good_program_good(ccnn, model):
    code, text, _ = ccnn("verify", model, "--target", "tiny")
    assert code == 0
    assert "the program is safe" in text
    assert "OUT OF BOUNDS" not in text


def test_verify_fails_when_a_tensor_is_out_of_bounds(ccnn, model, monkeypatch):
    from ccnn.compiler import actions
    from ccnn.compiler.execution import TensorError

    wrong = [TensorError("grad/conv.weight", float("nan"), 1e-6), TensorError("loss", 0.0, 1e-6)]
    monkeypatch.setattr(actions, "verify_values", lambda *_: wrong)
    code, text, message = ccnn("verify", model, "--target", "tiny", "-q")
    assert code == ExitCode.FAILED
    assert "1 of 2 tensors are out of bounds" in message
    code, text, message = ccnn("verify", model, "--target", "tiny")
    assert "grad/conv.weight" in text
    assert "OUT OF BOUNDS" in text


def test_an_unsafe_program_is_called_our_bug(ccnn, model, monkeypatch, tmp_path):
    from ccnn.compiler import actions

    monkeypatch.setattr(actions, "verify_program", lambda *_: ["slot 3 is read before written"])
    code, _, message = ccnn("compile", model, "--target", "tiny", "-q", "-o", tmp_path / "out")
    assert code == ExitCode.INTERNAL
    assert "slot 3 is read before written" in message
    assert "report it" in message
    assert not (tmp_path / "out").exists()


def test_check_describes_a_good_model(ccnn, model):
    code, text, _ = ccnn("check", model)
    assert code == 0
    assert "Conv" in text
    code, text, _ = ccnn("check", model, "--json")
    assert code == 0
    assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("command", ["ops", "passes"])
def test_lists_have_a_sentence_for_each_entry(ccnn, command):
    code, text, _ = ccnn(command, "--json")
    assert code == 0
    rows = json.loads(text)
    assert len(rows) >= 3
    assert [r["name"] for r in rows if not r["about"]] == []
    assert rows[0]["name"] in ccnn(command)[1]


def test_targets(ccnn):
    for arguments in (("targets",), ("targets", "list")):
        code, text, _ = ccnn(*arguments)
        assert code == 0
        for name in ("wavecore", "wavecore-base", "tpu-like", "tiny"):
            assert name in text
    assert "4 x 4" in ccnn("targets", "show", "tiny")[1]
    assert json.loads(ccnn("targets", "schema")[1])["type"] == "object"


def test_version(ccnn):
    assert ccnn("--version")[1] == "ccnn 0.1.0\n"


def test_help_names_every_exit_code(ccnn):
    text = ccnn("--help")[1]
    for code, meaning in MEANING.items():
        assert f"{code.value:>3}  {meaning}" in text


@pytest.mark.parametrize("name", sorted(cli.cli.commands))
def test_every_command_and_option_has_help(name):
    command = cli.cli.commands[name]
    assert command.help
    options = [p for p in command.params if isinstance(p, click.Option)]
    assert [o.name for o in options if not o.help] == []


def test_learning_rates_in_the_help_are_the_ones_used(ccnn):
    text = " ".join(ccnn("compile", "--help")[1].split())
    assert "[default: 0.01 for sgd, 0.001 for adam and adamw]" in text
    assert LEARNING_RATE == {"sgd": 0.01, "adam": 0.001, "adamw": 0.001}
    assert Optimizer().lr == LEARNING_RATE["sgd"]


# What is wrong on the command line

STEP = ("compile", "MODEL", "--target", "tiny")
USAGE = [
    ((), "Usage"),
    (("compil",), "compil"),
    (("compile",), "MODEL"),
    (("compile", "MODEL", "extra"), "extra"),
    ((*STEP, "--batch", "0"), "--batch"),
    ((*STEP, "--batch", "-3"), "--batch"),
    ((*STEP, "--batch", "many"), "--batch"),
    ((*STEP, "--batch", "1.5"), "--batch"),
    ((*STEP, "--dtype", "float8"), "float8"),
    ((*STEP, "--optimizer", "lion"), "lion"),
    ((*STEP, "--lr", "0"), "above 0"),
    ((*STEP, "--lr", "-0.1"), "above 0"),
    ((*STEP, "--lr", "nan"), "finite"),
    ((*STEP, "--lr", "inf"), "finite"),
    ((*STEP, "--lr", "fast"), "--lr"),
    ((*STEP, "--momentum", "1"), "below 1"),
    ((*STEP, "--momentum", "-0.5"), "below 1"),
    ((*STEP, "--momentum", "nan"), "finite"),
    ((*STEP, "--weight-decay", "-1"), "below 0"),
    ((*STEP, "--nesterov"), "--momentum"),
    ((*STEP, "--optimizer", "adam", "--momentum", "0.9"), "sgd"),
    ((*STEP, "--optimizer", "adamw", "--nesterov"), "sgd"),
    ((*STEP, "--loss", "hinge"), "hinge"),
    ((*STEP, "--freeze", ""), "empty pattern"),
    ((*STEP, "--freeze", "nothing.*", "--json"), "freezes nothing"),
    ((*STEP, "--seed", "-1"), "--seed"),
    ((*STEP, "-q", "-v"), "contradict"),
    ((*STEP, "--fast"), "--fast"),
    (("run", "MODEL"), "--inputs"),
    (("run", "MODEL", "--inputs", "INPUTS", "--steps", "0"), "--steps"),
    (("simulate", "MODEL"), ".asm"),
    (("targets", "shew"), "shew"),
    (("targets", "show"), "NAME"),
]


@pytest.mark.parametrize(("arguments", "words"), USAGE, ids=[" ".join(a) for a, _ in USAGE])
def test_usage_errors(ccnn, model, inputs, arguments, words):
    given = [{"MODEL": model, "INPUTS": inputs}.get(a, a) for a in arguments]
    code, out, message = ccnn(*given)
    assert code == ExitCode.USAGE
    assert words in message
    assert out == ""


# What is wrong with files


def no_model(tmp_path, model, inputs):
    return ("compile", tmp_path / "none.onnx"), ExitCode.FILES, "none.onnx"


def model_is_a_folder(tmp_path, model, inputs):
    return ("compile", tmp_path), ExitCode.FILES, "folder"


def model_is_text(tmp_path, model, inputs):
    (tmp_path / "m.onnx").write_text("this is not a model")
    return ("compile", tmp_path / "m.onnx", "--json"), ExitCode.INPUT, "m.onnx"


def verify_of_no_model(tmp_path, model, inputs):
    return ("verify", tmp_path / "none.onnx"), ExitCode.FILES, "none.onnx"


def check_of_no_model(tmp_path, model, inputs):
    return ("check", tmp_path / "none.onnx"), ExitCode.FILES, "none.onnx"


def unknown_machine(tmp_path, model, inputs):
    return ("compile", model, "--json", "--target", "wavecor"), ExitCode.MACHINE, "wavecore"


def unknown_machine_to_show(tmp_path, model, inputs):
    return ("targets", "show", "tinny"), ExitCode.MACHINE, "did you mean tiny"


def machine_file_missing(tmp_path, model, inputs):
    return ("compile", model, "--json", "--target", "./no.yaml"), ExitCode.MACHINE, "no.yaml"


def machine_file_broken(tmp_path, model, inputs):
    (tmp_path / "m.yaml").write_text("name: [")
    target = tmp_path / "m.yaml"
    return ("compile", model, "--json", "--target", target), ExitCode.MACHINE, "m.yaml"


def output_is_a_file(tmp_path, model, inputs):
    (tmp_path / "out").write_text("mine")
    return ("compile", model, "-o", tmp_path / "out"), ExitCode.FILES, "not a folder"


def output_under_a_file(tmp_path, model, inputs):
    (tmp_path / "file").write_text("mine")
    return ("compile", model, "-o", tmp_path / "file" / "out"), ExitCode.FILES, "out"


def output_not_writable(tmp_path, model, inputs):
    return ("compile", model, "-o", "/proc/ccnn"), ExitCode.FILES, "/proc/ccnn"


def output_name_too_long(tmp_path, model, inputs):
    return ("compile", model, "-o", tmp_path / ("x" * 300)), ExitCode.FILES, "shorter name"


def no_inputs(tmp_path, model, inputs):
    return ("run", model, "--inputs", tmp_path / "no.npz"), ExitCode.FILES, "no.npz"


def inputs_are_text(tmp_path, model, inputs):
    (tmp_path / "in.npz").write_text("1 2 3")
    return ("run", model, "--inputs", tmp_path / "in.npz"), ExitCode.INPUT, "numpy.savez"


def inputs_are_cut_short(tmp_path, model, inputs):
    (tmp_path / "in.npz").write_bytes(inputs.read_bytes()[:700])
    return ("run", model, "--inputs", tmp_path / "in.npz"), ExitCode.INPUT, "in.npz"


def inputs_are_damaged(tmp_path, model, inputs):
    data = bytearray(inputs.read_bytes())
    data[300] ^= 255
    (tmp_path / "in.npz").write_bytes(data)
    return ("run", model, "--inputs", tmp_path / "in.npz"), ExitCode.INPUT, "in.npz"


def inputs_hold_objects(tmp_path, model, inputs):
    np.savez(tmp_path / "in.npz", input=np.array([{}], object), target=np.array([1]))
    return ("run", model, "--inputs", tmp_path / "in.npz"), ExitCode.INPUT, "plain number"


def saved(tmp_path, **arrays):
    good = {"input": np.ones((4, 2, 6, 6)), "target": np.array([0, 1, 2, 0])}
    values = {k: v for k, v in {**good, **arrays}.items() if v is not None}
    np.savez(tmp_path / "in.npz", **values)
    return tmp_path / "in.npz"


def target_missing(tmp_path, model, inputs):
    path = saved(tmp_path, target=None)
    return ("run", model, "--inputs", path), ExitCode.INPUT, "target is missing"


def input_misnamed(tmp_path, model, inputs):
    path = saved(tmp_path, input=None, inputs=np.ones((4, 2, 6, 6)))
    return ("run", model, "--inputs", path), ExitCode.INPUT, "inputs[4, 2, 6, 6]"


def input_of_wrong_shape(tmp_path, model, inputs):
    path = saved(tmp_path, input=np.ones((4, 2, 6, 7)))
    return ("run", model, "--inputs", path), ExitCode.INPUT, "(4, 2, 6, 7)"


def input_of_text(tmp_path, model, inputs):
    path = saved(tmp_path, input=np.full((4, 2, 6, 6), "x"))
    return ("run", model, "--inputs", path), ExitCode.INPUT, "floating-point"


def input_not_a_number(tmp_path, model, inputs):
    path = saved(tmp_path, input=np.full((4, 2, 6, 6), np.nan))
    return ("run", model, "--inputs", path), ExitCode.INPUT, "not a number"


def target_of_floats(tmp_path, model, inputs):
    path = saved(tmp_path, target=np.ones(4))
    return ("run", model, "--inputs", path), ExitCode.INPUT, "whole numbers"


def target_beyond_the_classes(tmp_path, model, inputs):
    path = saved(tmp_path, target=np.array([0, 1, 3, 0]))
    return ("run", model, "--inputs", path), ExitCode.INPUT, "3 classes"


def results_into_no_folder(tmp_path, model, inputs):
    out = tmp_path / "none" / "r.npz"
    return ("run", model, "--inputs", inputs, "--save-results", out), ExitCode.FILES, "r.npz"


def results_into_a_folder(tmp_path, model, inputs):
    args = ("run", model, "--inputs", inputs, "--save-results", tmp_path)
    return args, ExitCode.FILES, str(tmp_path)


def results_onto_a_full_disk(tmp_path, model, inputs):
    args = ("run", model, "--inputs", inputs, "--save-results", "/dev/full")
    return args, ExitCode.FILES, "No space left"


def program_missing(tmp_path, model, inputs):
    return ("simulate", tmp_path / "p.asm"), ExitCode.FILES, "p.asm"


def program_is_nonsense(tmp_path, model, inputs):
    (tmp_path / "p.asm").write_text("LOAD everything\n")
    return ("simulate", tmp_path / "p.asm"), ExitCode.INPUT, "line 1"


def program_is_not_text(tmp_path, model, inputs):
    (tmp_path / "p.asm").write_bytes(b"\xff\xfe\x00")
    return ("simulate", tmp_path / "p.asm"), ExitCode.INPUT, "not text"


def program_bytes_are_damaged(tmp_path, model, inputs):
    (tmp_path / "p.bin").write_bytes(b"CCNN" + bytes(range(60)))
    return ("simulate", tmp_path / "p.bin"), ExitCode.INPUT, ""


def report_of_no_folder(tmp_path, model, inputs):
    return ("report", tmp_path / "none"), ExitCode.FILES, "none"


def report_of_an_empty_folder(tmp_path, model, inputs):
    return ("report", tmp_path), ExitCode.FILES, "no report.json"


def report_is_no_json(tmp_path, model, inputs):
    (tmp_path / "report.json").write_text("{")
    return ("report", tmp_path), ExitCode.INPUT, "not JSON"


def report_is_a_list(tmp_path, model, inputs):
    (tmp_path / "report.json").write_text("[1]")
    return ("report", tmp_path), ExitCode.INPUT, "schema version"


def report_of_the_future(tmp_path, model, inputs):
    (tmp_path / "report.json").write_text('{"schema_version": 99}')
    return ("report", tmp_path), ExitCode.INPUT, "99"


def report_with_holes(tmp_path, model, inputs):
    (tmp_path / "report.json").write_text('{"schema_version": 1}')
    return ("report", tmp_path), ExitCode.INPUT, "schema"


BAD_FILES = [
    no_model, model_is_a_folder, model_is_text, verify_of_no_model, check_of_no_model,
    unknown_machine, unknown_machine_to_show, machine_file_missing, machine_file_broken,
    output_is_a_file, output_under_a_file, output_not_writable, output_name_too_long, no_inputs,
    inputs_are_text, inputs_are_cut_short, inputs_are_damaged, inputs_hold_objects, target_missing,
    input_misnamed, input_of_wrong_shape, input_of_text, input_not_a_number, target_of_floats,
    target_beyond_the_classes, results_into_no_folder, results_into_a_folder,
    results_onto_a_full_disk, program_missing, program_is_nonsense, program_is_not_text,
    program_bytes_are_damaged, report_of_no_folder, report_of_an_empty_folder, report_is_no_json,
    report_is_a_list, report_of_the_future, report_with_holes,
]  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES, ids=lambda c: c.__name__)
def test_bad_files(ccnn, model, inputs, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    arguments, expected, words = case(tmp_path, model, inputs)
    if arguments[0] in ("compile", "run") and "--target" not in arguments:
        arguments = (*arguments, "--target", "tiny")
    before = set(tmp_path.iterdir())
    code, _, message = ccnn(*arguments)
    assert code == expected, message
    assert words in message
    assert "Traceback" not in message
    assert "internal error" not in message
    assert message.strip()
    assert set(tmp_path.iterdir()) == before


def test_an_unsafe_program_file_is_refused(ccnn, model, tmp_path):
    ccnn("compile", model, "--target", "tiny", "-q", "-o", tmp_path)
    text = (tmp_path / "program.asm").read_text()
    victim = next(line for line in text.splitlines() if line.split()[:2] == ["wait", "array"])
    (tmp_path / "program.asm").write_text(text.replace(victim + "\n", "", 1))
    code, _, message = ccnn("simulate", tmp_path / "program.asm", "-q")
    assert code == ExitCode.FAILED
    assert "not safe on tiny" in message


def test_a_bad_model_is_a_failed_check(ccnn, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"nonsense")
    code, out, err = ccnn("check", tmp_path / "m.onnx")
    assert code == ExitCode.FAILED
    assert "m.onnx" in out + err


# What goes wrong while writing


def test_a_full_disk_leaves_the_old_files(ccnn, model, tmp_path, monkeypatch):
    ccnn("compile", model, "--target", "tiny", "-q", "-o", tmp_path)
    before = contents(tmp_path)
    written = []

    def full(stream, data):
        written.append(data)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        stream.write(data)

    monkeypatch.setattr(files, "_pour", full)
    code, _, message = ccnn(
        "compile", model, "--target", "tiny", "--lr", "0.5", "-q", "-o", tmp_path
    )
    assert code == ExitCode.FILES
    assert "No space left on device" in message
    assert "free some space" in message
    assert contents(tmp_path) == before


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def stop(stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a.npz", stop)
    assert list(tmp_path.iterdir()) == []


def test_an_unused_output_folder_disappears(tmp_path):
    with output_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_stays(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(KeyboardInterrupt), output_folder(tmp_path):
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"mine.txt": b"mine"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_standard_output_on_a_full_disk(model):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*CCNN, "targets"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == ExitCode.FILES
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_closed_pipe_is_no_error_message():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*CCNN, "ops"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert done.returncode == ExitCode.PIPE
    assert done.stderr == ""


def test_ctrl_c_gives_130_and_leaves_nothing(model, tmp_path):
    # Stopped in the middle of compiling, when the folder is already there. The handler is set
    # because a shell's background job, which the tests may be, starts with SIGINT ignored.
    code = (
        "import signal, sys, time\n"
        "from ccnn.compiler import actions, cli\n"
        "def slow(*_):\n"
        "    print('compiling', flush=True)\n"
        "    time.sleep(600)\n"
        "actions.compile_model = slow\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "cli.main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, "compile", str(model), "-o", str(tmp_path / "out"), "-q"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "compiling\n"
    assert (tmp_path / "out").is_dir()
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=300)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "stopped" in message
    assert "Traceback" not in message
    assert list(tmp_path.iterdir()) == []


# Bugs of ours


def test_a_bug_is_reported_without_a_traceback(ccnn, model, monkeypatch):
    from ccnn.compiler import actions

    def broken(*_):
        raise KeyError("nobody expects this")

    monkeypatch.setattr(actions, "compile_model", broken)
    code, _, message = ccnn("compile", model, "--json", "-q")
    assert code == ExitCode.INTERNAL
    assert "nobody expects this" in message
    assert "report it" in message
    assert "Traceback" not in message
    assert "Traceback" in ccnn("compile", model, "--json", "-v")[2]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), ExitCode.FILES),
        (RecursionError("deep"), ExitCode.INTERNAL),
        (PermissionError(errno.EACCES, "Permission denied", "/etc/x"), ExitCode.FILES),
        (Failure(ExitCode.MACHINE, "told"), ExitCode.MACHINE),
    ],
)
def test_errors_and_their_codes(error, code):
    failure = explain(error)
    assert failure.code is code
    assert failure.message


def test_every_error_class_of_ccnn_has_a_code():
    rooms = [importlib.import_module(f"ccnn.{room}") for room in ("compiler", "passes", "targets")]
    modules = [
        importlib.import_module(found.name)
        for room in rooms
        for found in pkgutil.walk_packages(room.__path__, f"{room.__name__}.")
        if not found.name.endswith("__main__")
    ]
    kinds = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Exception) and "ccnn" in value.__module__
    }
    known = set(files.Failure.__mro__) | {k for k in kinds if k.__name__ == "Refusal"}
    from ccnn.compiler.failure import _CODES

    public = {k.__name__ for k in kinds - known if k.__name__.endswith("Error")}
    assert public == set(_CODES)


# Progress


def test_plain_progress_says_little(capsys):
    now = iter([0.0, 0.1, 0.2, 2.4, 2.5])
    progress = plain_progress(lambda: next(now))
    progress("map", 0, 9)
    progress("map", 1, 9)
    progress("map", 7, 9)
    progress("generate", 0, 0)
    assert capsys.readouterr().err == "ccnn: map\nccnn: map 7/9\nccnn: generate\n"


def test_progress_says_which_program_it_is_about(ccnn, model, tmp_path):
    """A serialized program is compiled first, then the baseline that it is held against."""
    _, _, told = ccnn("compile", model, "--serialize", "mbs2", "--json")
    stages = [line.removeprefix("ccnn: ") for line in told.splitlines() if "ccnn: " in line]
    own, usual = stages.index("simulating"), stages.index("baseline: generate")
    assert own < usual
    assert stages.count("generate") == stages.count("baseline: generate") == 1
