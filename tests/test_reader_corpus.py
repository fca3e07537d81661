"""The reader on real exports: parameters, forward results and loss against PyTorch's own."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ccnn.compiler.reader import ReadOptions, read_model
from ccnn.passes.autodiff import differentiate
from ccnn.passes.interpret import interpret

CORPUS = Path(os.environ.get("CCNN_CORPUS", Path(__file__).parents[2] / "shared" / "corpus"))
FILES = sorted(CORPUS.glob("tiny/*/*.onnx"))
LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))


def stripped(paths: list[Path]) -> list[Any]:
    """Models without weights; those that take seconds to draw are slow."""
    heavy = ("vgg", "alexnet", "zfnet")
    return [
        pytest.param(
            p, id=p.stem, marks=[pytest.mark.slow] if any(h in p.stem for h in heavy) else []
        )
        for p in paths
    ]


needs_corpus = pytest.mark.skipif(
    not FILES, reason=f"no model corpus at {CORPUS}; set CCNN_CORPUS to run these"
)


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def reference(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Expected results and the inputs they belong to."""
    with np.load(path.parent / "ref_f64.npz") as ref, np.load(path.parent / "inputs.npz") as data:
        return {k: ref[k] for k in ref.files}, {k: data[k] for k in data.files}


@needs_corpus
@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_forward_and_parameters(path: Path) -> None:
    expected, data = reference(path)
    result = read_model(path, ReadOptions(batch=len(data["input"])))
    graph = result.graph
    trained = {k.removeprefix("grad/") for k in expected if k.startswith("grad/")}
    running = {k.removeprefix("bn1/") for k in expected if k.startswith("bn1/")}
    assert {t.name for t in graph.of_role("parameter")} == trained
    assert {t.name for t in graph.of_role("state")} == running
    keep = (*result.outputs, result.loss)
    values = interpret(graph, {"input": data["input"], result.target: data["target"]}, keep=keep)
    output = values[result.outputs[0]]
    np.testing.assert_allclose(output, expected["output"], rtol=1e-6, atol=1e-6)
    assert values[result.loss] == pytest.approx(float(expected["loss"]), rel=1e-7)


@needs_corpus
@pytest.mark.parametrize(
    "path", [p for p in FILES if p.parent.name in ("resnet8_fresh", "lenet5")], ids=name_of
)
def test_gradients(path: Path) -> None:
    expected, data = reference(path)
    result = read_model(path, ReadOptions(batch=len(data["input"])))
    graph = differentiate(result.graph, result.loss)
    keep = tuple(graph.gradients.values())
    values = interpret(graph, {"input": data["input"], result.target: data["target"]}, keep=keep)
    largest = max(np.abs(expected[f"grad/{k}"]).max() for k in graph.gradients)
    for parameter, gradient in graph.gradients.items():
        np.testing.assert_allclose(
            values[gradient], expected[f"grad/{parameter}"], rtol=1e-5, atol=1e-8 * largest
        )


@needs_corpus
def test_equal_parameters_stay_apart() -> None:
    paths = [p for p in FILES if p.parent.name == "resnet8_fresh" and p.name == "model.onnx"]
    graph = read_model(paths[0]).graph
    ones = [t.name for t in graph.of_role("parameter") if t.name.endswith("bn.weight")]
    assert len(ones) == 9
    assert all(len(graph.consumers[name]) == 1 for name in ones)


@needs_corpus
@pytest.mark.parametrize("model", ["squeezenet", "convnext", "alexnet_lrn"])
@pytest.mark.parametrize("batch", [1, 3])
def test_fixed_batch_can_be_changed(model: str, batch: int) -> None:
    """With running statistics aside, each sample's result does not depend on the others."""
    path = CORPUS / f"tiny/{model}/model.dynamo.onnx"
    expected, data = reference(path)
    result = read_model(path, ReadOptions(batch=batch))
    values = {"input": data["input"][:batch], result.target: data["target"][:batch]}
    output = interpret(result.graph, values, keep=result.outputs)[result.outputs[0]]
    np.testing.assert_allclose(output, expected["output"][:batch], rtol=1e-6, atol=1e-6)


STANDARD = sorted(CORPUS.glob("standard/*.onnx"))


@needs_corpus
@pytest.mark.parametrize("path", stripped(STANDARD))
def test_stripped_models_have_all_weights(path: Path) -> None:
    model = onnx.load(path)
    rule = json.loads({p.key: p.value for p in model.metadata_props}["corpus.init"])
    shapes = {k: tuple(v["shape"]) for k, v in rule["tensors"].items()}
    graph = read_model(path).graph
    weights = graph.of_role("parameter", "state")
    assert {t.name: t.shape for t in weights} == shapes
    convs = [t for t in weights if len(t.shape) == 4 and t.size > 10_000]
    for t in convs:
        fan_in = t.size / t.shape[0]
        assert np.std(graph.data[t.name]) == pytest.approx(np.sqrt(2 / fan_in), rel=0.1)


def test_same_seed_same_weights() -> None:
    path = next(p for p in LIGHT if "squeezenet" in p.name)
    first, again, other = (read_model(path, ReadOptions(seed=s)).graph.data for s in (5, 5, 6))
    assert all(np.array_equal(first[k], again[k]) for k in first)
    assert any(not np.array_equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("path", stripped(LIGHT))
def test_light_models_read(path: Path) -> None:
    result = read_model(path)
    graph = result.graph
    onnx_graph = onnx.load(path).graph
    expected = {n.output[0] for n in onnx_graph.node if n.op_type == "ConstantOfShape"}
    expected |= {i.name for i in onnx_graph.initializer if i.data_type == onnx.TensorProto.FLOAT}
    expected &= {name for node in onnx_graph.node for name in node.input}
    assert {t.name for t in graph.of_role("parameter", "state")} == expected
    assert graph[result.loss].shape == ()
    assert graph[result.outputs[0]].shape[:2] == (1, 1000)


def materialized(path: Path) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A stripped corpus model with the reference run's weights, and its inputs."""
    model = onnx.load(path)
    meta = {p.key: p.value for p in model.metadata_props}
    rule, feeds = json.loads(meta["corpus.init"]), json.loads(meta["corpus.inputs"])
    seed = feeds.pop("seed")
    del model.graph.initializer[:]
    kept = [n for n in model.graph.node if n.op_type != "ConstantOfShape"]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    for name, t in rule["tensors"].items():
        array = draw(name, t["shape"], t["spec"], rule["seed"])
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model, {k: draw(k, v["shape"], v["spec"], seed) for k, v in feeds.items()}


def draw(name: str, shape: list[int], spec: list, seed: int) -> np.ndarray:
    r = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()))
    match spec:
        case ["const", value]:
            return np.full(shape, value, np.float32)
        case ["normal", scale]:
            return (r.standard_normal(shape) * scale).astype(np.float32)
        case ["uniform", low, high]:
            return r.uniform(low, high, shape).astype(np.float32)
        case ["classes", n]:
            return r.randint(0, n, shape).astype(np.int64)
    raise ValueError(spec)


@needs_corpus
@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [p for p in STANDARD if p.with_suffix(".ref.npz").is_file()], ids=lambda p: p.stem
)
def test_standard_models_forward(path: Path) -> None:
    model, data = materialized(path)
    result = read_model(model)
    feeds = {"input": data["input"], result.target: data["target"]}
    keep = (*result.outputs, result.loss)
    values = interpret(result.graph, feeds, keep=keep)
    with np.load(path.with_suffix(".ref.npz")) as ref:
        expected, loss = ref["f64/output"], float(ref["f64/loss"])
    error = np.abs(values[result.outputs[0]] - expected).max() / np.abs(expected).max()
    assert error < 1e-6
    assert values[result.loss] == pytest.approx(loss, rel=1e-6)
