"""`ccnn export`: every op and whole training steps as ONNX, executed by onnxruntime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from reference import DATA, errors, read
from test_ops import CASES, build

from ccnn.compiler.cli import run as command
from ccnn.compiler.driver import CompileOptions
from ccnn.compiler.export import ExportError, export_graph, export_model
from ccnn.compiler.export.step import RULES, serialized
from ccnn.passes.autodiff import Optimizer, differentiate
from ccnn.passes.graph import Builder, Graph
from ccnn.passes.interpret import after_step, interpret
from ccnn.passes.ops import OPS

onnxruntime = pytest.importorskip("onnxruntime")

CORPUS = Path(os.environ.get("CCNN_CORPUS", Path(__file__).parents[2] / "shared" / "corpus"))
SHIPPED = sorted(DATA.glob("*/model*.onnx"))
ULP = 2.0**-23


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


FURTHER = [
    p for p in sorted((CORPUS / "tiny").glob("*/model*.onnx"))
    if name_of(p) not in {name_of(s) for s in SHIPPED}
]  # fmt: skip


def run(model: onnx.ModelProto, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What onnxruntime makes of a model, with its own graph optimisations off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(serialized(model), options)
    names = [o.name for o in session.get_outputs()]
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(double)": np.float64}
    kinds["tensor(float16)"] = np.float16
    inputs = [*session.get_inputs(), *session.get_overridable_initializers()]
    fed = {i.name: np.asarray(values[i.name], kinds[i.type]) for i in inputs if i.name in values}
    return dict(zip(names, session.run(names, fed), strict=True))


def exported(graph: Graph, dtype: str = "float32") -> onnx.ModelProto:
    model = export_graph(graph, {f"y{k}": o for k, o in enumerate(graph.outputs)}, dtype=dtype)
    onnx.checker.check_model(model, full_check=True)
    return model


def rounded(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Values that float32 holds exactly."""
    return {
        k: v.astype(np.float32).astype(v.dtype) if v.dtype.kind == "f" else v
        for k, v in values.items()
    }


def test_every_primitive_has_a_rule():
    assert set(RULES) == {name for name, op in OPS.items() if op.primitive}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_op_in_onnxruntime(case):
    graph, values = build(case)
    values = rounded(values)
    expected, got = interpret(graph, values), run(exported(graph), values)
    for k, name in enumerate(graph.outputs):
        scale = max(1.0, float(np.abs(expected[name]).max(initial=0)))
        assert got[f"y{k}"].shape == expected[name].shape
        np.testing.assert_allclose(got[f"y{k}"], expected[name], rtol=2e-5, atol=4e-6 * scale)


def evaluator_knows(case) -> bool:
    """Erf is float32 in onnx's own evaluator, and its grouped ConvTranspose fails."""
    return case.op not in ("erf", "gelu") and not (
        case.op == "conv_transpose" and case.attrs["group"] > 1
    )


@pytest.mark.parametrize("case", list(filter(evaluator_knows, CASES)), ids=str)
def test_each_op_is_exact_in_float64(case):
    graph, values = build(case)
    expected, model = interpret(graph, values), exported(graph, "float64")
    session = ReferenceEvaluator(model)
    got = dict(zip(session.output_names, session.run(None, values), strict=True))
    for k, name in enumerate(graph.outputs):
        scale = max(1.0, float(np.abs(expected[name]).max(initial=0)))
        np.testing.assert_allclose(got[f"y{k}"], expected[name], rtol=1e-9, atol=1e-11 * scale)


def read_feedback(model: onnx.ModelProto) -> dict[str, str]:
    (text,) = (p.value for p in model.metadata_props if p.key == "ccnn.feedback")
    return json.loads(text)


def step_errors(path: Path, lowered: bool) -> dict[str, float]:
    """Export, run two steps, the second with what the first gave; the error of every result."""
    truth, inputs = read(path.parent / "ref_f64.npz"), read(path.parent / "inputs.npz")
    lr, momentum, decay = (float(h) for h in truth["hyper"])
    options = CompileOptions(
        dtype="float32", batch=len(inputs["input"]), input_gradient=True,
        optimizer=Optimizer("sgd", lr, momentum, decay),
    )  # fmt: skip
    model = export_model(path, options, lowered=lowered)
    defaults = {i.name for i in model.graph.initializer}
    free = [i.name for i in model.graph.input if i.name not in defaults]
    first = run(model, dict(zip(free, (inputs["input"], inputs["target"]), strict=True)))
    fed = dict(zip(free, (inputs["input"], inputs["target"]), strict=True))
    second = run(model, {**fed, **{new: first[k] for k, new in read_feedback(model).items()}})
    results = {**first, "loss2": second["loss"]}
    results |= {f"w2/{k[3:]}": v for k, v in second.items() if k.startswith("w1/")}
    return errors(truth, results)


def check_step(path: Path, lowered: bool) -> None:
    """No result may be off by more than four times what PyTorch's own float32 run is."""
    floor = errors(read(path.parent / "ref_f64.npz"), read(path.parent / "ref_f32.npz"))
    for key, error in step_errors(path, lowered).items():
        known = floor[key] if floor[key] != float("inf") else 10 * floor["w1/" + key[3:]]
        assert error <= 4 * max(known, ULP), (key, error, known)


@pytest.mark.parametrize("lowered", [False, True], ids=["step", "lowered"])
@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_steps_agree_with_pytorch(path, lowered):
    check_step(path, lowered)


@pytest.mark.slow
@pytest.mark.skipif(not FURTHER, reason="no model corpus; set CCNN_CORPUS")
@pytest.mark.parametrize("lowered", [False, True], ids=["step", "lowered"])
@pytest.mark.parametrize("path", FURTHER, ids=name_of)
def test_steps_of_the_corpus_agree_with_pytorch(path, lowered):
    check_step(path, lowered)


def digest(name: str, value: np.ndarray) -> np.ndarray:
    """Largest magnitude and 32 samples: what the corpus keeps of large tensors."""
    flat = np.asarray(value, np.float64).reshape(-1)
    draw = np.random.RandomState(zlib.crc32(f"digest:{name}".encode()) & 0xFFFFFFFF)
    return np.concatenate([[np.abs(flat).max()], flat[draw.randint(0, flat.size, 32)]])


@pytest.mark.slow
@pytest.mark.skipif(not (CORPUS / "standard").is_dir(), reason="no model corpus; set CCNN_CORPUS")
@pytest.mark.parametrize("name", ["std_mobilenet_v2", "std_densenet121"])
def test_steps_of_whole_networks_agree_with_pytorch(name, tmp_path):
    """Rounding moves units across a kink here, so single gradients differ between any two runs:
    loss and output are held to float32, gradients by their median against PyTorch's own error."""
    full, arrays = tmp_path / "full.onnx", tmp_path / "inputs.npz"
    tool, model = CORPUS / "materialize_weights.py", CORPUS / "standard" / f"{name}.onnx"
    command = [sys.executable, str(tool), str(model), str(full), "--inputs", str(arrays)]
    subprocess.run(command, check=True, capture_output=True)
    step = export_model(full, CompileOptions(dtype="float32", batch=2))
    fed, truth = read(arrays), read(model.with_suffix(".ref.npz"))
    results = run(step, {"input": fed["input"], "target": fed["target"]})
    for key, bound in (("loss", 1e-5), ("output", 5e-5)):
        np.testing.assert_allclose(
            results[key],
            truth[f"f64/{key}"],
            rtol=0,
            atol=bound * np.abs(truth[f"f64/{key}"]).max(),
        )
    ratios = []
    for key in (k for k in results if k.startswith("grad/")):
        exact, single = (truth[f"{kind}/digest/{key}"][1:] for kind in ("f64", "f32"))
        error = np.abs(digest(key, results[key]) - exact).max()
        ratios.append(error / max(np.abs(single - exact).max(), ULP * exact[0], 1e-30))
    assert len(ratios) > 100
    assert np.median(ratios) < 4


def trained(**more) -> tuple[Graph, str]:
    """A small step: a pooled convolution, a classifier, cross-entropy."""
    rng = np.random.default_rng(1)
    b = Builder("small")
    x = b.input("x", (4, 2, 6, 6))
    w = b.declare("w", (3, 2, 3, 3), "parameter", data=rng.standard_normal((3, 2, 3, 3)))
    v = b.declare("v", (12, 5), "parameter", data=rng.standard_normal((12, 5)))
    y = b.emit("conv", [x, w], strides=(1, 1), pads=(1,) * 4, dilations=(1, 1), group=1)
    y = b.emit("max_pool", [y], kernel=(3, 3), strides=(3, 3), pads=(0,) * 4, dilations=(1, 1))
    if more.pop("dropout", False):
        y = b.emit("dropout", [y], ratio=0.5, seed=3)
    y = b.emit("reshape", [y], shape=(4, 12))
    y = b.emit("matmul", [y, v], trans_a=False, trans_b=False)
    target = b.input("target", (4,), "index")
    loss = b.emit("softmax_cross_entropy", [y, target], reduction="mean")
    return differentiate(b.build([y, loss]), loss, optimizer=Optimizer(**more)), loss


def exported_step(step: Graph, loss: str, dtype: str = "float32") -> onnx.ModelProto:
    results = {"loss": loss, **{f"next/{k}": v for k, v in step.updates.items()}}
    feedback = {f"next/{k}": k for k in step.updates}
    return export_graph(step, results, dtype=dtype, feedback=feedback)


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    return {"x": rng.standard_normal((4, 2, 6, 6)), "target": rng.integers(0, 5, 4)}


@pytest.mark.parametrize(
    "optimizer",
    [
        {"kind": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        {"kind": "adam", "lr": 0.01},
        {"kind": "adamw", "lr": 0.01, "weight_decay": 0.1},
        {"kind": "sgd", "dropout": True},
    ],
    ids=["nesterov", "adam", "adamw", "dropout"],
)
def test_three_steps_fed_back_agree_with_the_interpreter(optimizer):
    step, loss = trained(**optimizer)
    model = exported_step(step, loss)
    expected, got = dict(batch()), dict(batch())
    losses = []
    for number in range(3):
        found, results = interpret(step, expected, step=number), run(model, got)
        losses.append((float(results["loss"]), float(found[loss])))
        expected |= after_step(step, found)
        got |= {old: results[new] for new, old in read_feedback(model).items()}
        for name, new in step.updates.items():
            np.testing.assert_allclose(results[f"next/{name}"], found[new], rtol=1e-4, atol=1e-5)
    assert losses[2][0] < losses[0][0] or "dropout" in optimizer
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-5)


def test_half_precision_keeps_sums_and_state_in_float32():
    step, loss = trained(momentum=0.9)
    model = exported_step(step, loss, "float16")
    kinds = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    assert kinds["w"] == onnx.TensorProto.FLOAT16
    assert kinds["momentum/w"] == onnx.TensorProto.FLOAT
    found, got = interpret(step, batch()), run(model, batch())
    assert got["loss"] == pytest.approx(found[loss], rel=5e-3)


def test_defaults_can_be_replaced():
    step, loss = trained()
    model = exported_step(step, loss)
    zero = {"w": np.zeros((3, 2, 3, 3)), **batch()}
    assert run(model, zero)["loss"] == pytest.approx(np.log(5), rel=1e-6)
    assert run(model, batch())["loss"] != pytest.approx(np.log(5), rel=1e-2)


def test_only_standard_operators_and_the_same_bytes_each_time():
    (step, loss), (again, _) = trained(kind="adam"), trained(kind="adam")
    model = exported_step(step, loss)
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 21)}
    assert {n.domain for n in model.graph.node} == {""}
    assert not model.functions
    onnx.checker.check_model(model, full_check=True)
    assert serialized(model) == serialized(exported_step(again, loss))
    phases = {p.value for n in model.graph.node for p in n.metadata_props if p.key == "ccnn.phase"}
    assert phases == {"forward", "backward", "update"}


def test_names_that_meet_get_numbers():
    b = Builder()
    x = b.input("loss", (2, 3))
    y = b.emit("relu", [x], name="y0")
    z = b.emit("exp", [y], name="loss.1")
    model = export_graph(b.build([y, z]), {"loss": z, "y0": y, "same": y, "given": x})
    onnx.checker.check_model(model, full_check=True)
    value = np.array([[-1.0, 0, 2], [3, -4, 5]], np.float32)
    got = run(model, {"loss": value})
    relu = np.maximum(value, 0)
    np.testing.assert_allclose(got["loss.1"], np.exp(relu), rtol=1e-6)
    for name in ("y0", "same"):
        np.testing.assert_array_equal(got[name], relu)
    np.testing.assert_array_equal(got["given"], value)


def test_a_maximum_among_minus_infinities_is_never_padding():
    b = Builder()
    x = b.input("x", (1, 1, 2, 2))
    y, index = b.emit_all(
        "max_pool", [x], kernel=(2, 2), strides=(2, 2), pads=(1,) * 4, dilations=(1, 1)
    )
    graph = b.build([y, index])
    values = {"x": np.array([[[[-np.inf, 1.0], [-np.inf, -np.inf]]]])}
    expected, got = interpret(graph, values), run(exported(graph), values)
    np.testing.assert_array_equal(got["y0"], expected[y])
    np.testing.assert_array_equal(got["y1"], expected[index])
    assert got["y1"].ravel().tolist() == [3, 2, 1, 0]


def test_more_than_a_file_can_hold_is_refused():
    b = Builder()
    w = b.declare("w", (1 << 15, 1 << 15), "parameter")
    graph = b.build([b.emit("relu", [w])])
    with pytest.raises(ExportError, match=r"4\.0 GiB, an ONNX file holds 2 GiB"):
        export_graph(graph, {"y": graph.outputs[0]})


def test_the_command_writes_what_the_library_makes(tmp_path, capsys):
    path, made = DATA / "resnet8_cifar" / "model.onnx", tmp_path / "step.onnx"
    assert command(["export", str(path), "-o", str(made), "--momentum", "0.9", "-v"]) == 0
    said = capsys.readouterr()
    assert "29 grad/NAME, 18 bn1/NAME, 29 w1/NAME, 29 state1/NAME" in said.out
    assert "assumed: optimizer sgd (--optimizer)" in said.out
    options = CompileOptions(dtype="float32", optimizer=Optimizer("sgd", 0.01, 0.9))
    assert made.read_bytes() == serialized(export_model(path, options))
    assert [p.name for p in tmp_path.iterdir()] == ["step.onnx"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--freeze", "nothing*"], 2, "--freeze: the pattern 'nothing*' freezes nothing"),
        (["--target", "wavecore"], 2, "No such option '--target'"),
        (["-o", "{folder}"], 5, "give a file, not a folder"),
        (["-o", "{folder}/none/step.onnx"], 5, "No such file or directory"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, code, message, tmp_path, capsys):
    path = DATA / "resnet8_cifar" / "model.onnx"
    given = [a.format(folder=tmp_path) for a in arguments]
    assert command(["export", str(path), "-o", str(tmp_path / "s.onnx"), *given]) == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_frozen_parameters_have_no_gradient(tmp_path):
    path, made = DATA / "resnet8_cifar" / "model.onnx", tmp_path / "step.onnx"
    assert command(["export", str(path), "-o", str(made), "--freeze", "*conv*", "-q"]) == 0
    outputs = {o.name for o in onnx.load(made).graph.output}
    assert not {o for o in outputs if o.startswith(("grad/", "w1/")) and "conv" in o}
    assert any(o.startswith("w1/") for o in outputs)
