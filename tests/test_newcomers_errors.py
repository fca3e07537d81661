"""What users of neighbouring tools stumble over, each tried on ccnn: its message, word for word.

Each case is one command; its golden text is the command, all that it says, and its exit code.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from ccnn.compiler import cli

DATA = Path(__file__).parent / "data"
F, I64 = TensorProto.FLOAT, TensorProto.INT64
Dims = tuple[int | str, ...]


def net(
    *nodes: onnx.NodeProto, weights: dict[str, np.ndarray] | None = None,
    shape: Dims = (4, 3, 8, 8), opset: int = 17,
) -> ModelProto:  # fmt: skip
    """A model from `image` to `scores`."""
    graph = helper.make_graph(
        list(nodes), "net", [helper.make_tensor_value_info("image", F, shape)],
        [helper.make_empty_tensor_value_info("scores")],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (weights or {}).items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(op: str, inputs: str, outputs: str, name: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name, **attributes)


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def classifier(shape: Dims = (4, 3, 8, 8), opset: int = 17) -> ModelProto:
    """A convolution and a matrix: a good model, of any batch size."""
    return net(
        node("Conv", "image conv.weight", "a", "conv"), node("Relu", "a", "b", "relu"),
        node("GlobalAveragePool", "b", "c", "pool"), node("Flatten", "c", "d", "flatten"),
        node("Gemm", "d fc.weight", "scores", "fc", transB=1),
        weights={"conv.weight": weight(8, 3, 3, 3), "fc.weight": weight(5, 8)},
        shape=shape, opset=opset,
    )  # fmt: skip


def open_size() -> ModelProto:
    return classifier(("batch", 3, "height", "width"))


def unsupported() -> ModelProto:
    return net(
        node("Conv", "image conv.weight", "a", "features/conv"),
        node("GridSample", "a grid", "b", "features/warp"),
        node("TopK", "b k", "scores indices", "head/best"),
        weights={"conv.weight": weight(8, 3, 3, 3), "grid": weight(4, 2, 2, 2), "k": np.array([3])},
    )


def folded_norms() -> ModelProto:
    return net(
        node("Conv", "image onnx::Conv_40 onnx::Conv_41", "a", "/stem/conv/Conv"),
        node("Relu", "a", "b", "/stem/relu/Relu"),
        node("Conv", "b onnx::Conv_43 onnx::Conv_44", "scores", "/head/conv/Conv"),
        weights={"onnx::Conv_40": weight(8, 3, 3, 3), "onnx::Conv_41": weight(8),
                 "onnx::Conv_43": weight(4, 8, 3, 3), "onnx::Conv_44": weight(4)},
    )  # fmt: skip


def weights_elsewhere() -> ModelProto:
    model = classifier()
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="model.onnx.data")
    return model


def quantised() -> ModelProto:
    return net(
        node("QuantizeLinear", "image scale zero", "a", "image_QuantizeLinear"),
        node("QLinearConv", "a scale zero w wscale wzero scale zero", "b", "conv_quant"),
        node("DequantizeLinear", "b scale zero", "scores", "scores_DequantizeLinear"),
        weights={"scale": np.float32(0.1), "zero": np.uint8(128), "wscale": np.float32(0.02),
                 "wzero": np.int8(0), "w": np.ones((8, 3, 3, 3), np.int8)},
    )  # fmt: skip


def control_flow() -> ModelProto:
    body = helper.make_graph(
        [node("Relu", "image", "r", "inner")], "branch", [],
        [helper.make_empty_tensor_value_info("r")],
    )  # fmt: skip
    return net(
        node("ReduceMax", "image", "m", "max", keepdims=0),
        node("Greater", "m zero", "c", "compare"),
        node("If", "c", "scores", "choose", then_branch=body, else_branch=body),
        weights={"zero": np.float32(0)},
    )


def fixed_batch() -> ModelProto:
    return net(
        node("Conv", "image conv.weight", "a", "conv"),
        node("Reshape", "a shape", "b", "view"),
        node("Gemm", "b fc.weight", "scores", "fc", transB=1),
        weights={"conv.weight": weight(8, 3, 3, 3), "shape": np.array([4, 288]),
                 "fc.weight": weight(5, 288)},
    )  # fmt: skip


def mixed_batch() -> ModelProto:
    return net(
        node("Conv", "image conv.weight", "a", "conv"),
        node("Reshape", "a shape", "b", "pairs"),
        node("Conv", "b pair.weight", "scores", "compare"),
        weights={"conv.weight": weight(8, 3, 3, 3), "shape": np.array([2, 16, 6, 6]),
                 "pair.weight": weight(5, 16, 3, 3)},
    )  # fmt: skip


def newer_ir() -> ModelProto:
    model = classifier(opset=99)
    model.ir_version = 99
    return model


def sequence_output() -> ModelProto:
    return net(
        node("Conv", "image conv.weight", "a", "conv"),
        node("SplitToSequence", "a", "scores", "split", axis=1),
        weights={"conv.weight": weight(8, 3, 3, 3)},
    )


MACHINE = "name: mine\ndescription: mine\ninherits: tiny\n"
NPZ = DATA / "resnet8_cifar" / "inputs.npz"

CASES: dict[str, tuple[str, dict[str, Callable[[], ModelProto] | str | bytes]]] = {
    "dynamic_batch": ("check m.onnx", {"m.onnx": lambda: classifier(("batch", 3, 8, 8))}),
    "dynamic_size": ("compile m.onnx -q", {"m.onnx": open_size}),
    "unsupported_operators": ("compile m.onnx -q", {"m.onnx": unsupported}),
    "folded_batch_norm": ("check m.onnx", {"m.onnx": folded_norms}),
    "missing_weights_file": ("compile m.onnx -q", {"m.onnx": weights_elsewhere}),
    "quantised_model": ("compile m.onnx -q", {"m.onnx": quantised}),
    "control_flow": ("compile m.onnx -q", {"m.onnx": control_flow}),
    "batch_unlike_the_files": ("check m.onnx --batch 32", {"m.onnx": fixed_batch}),
    "batch_contradicts_file": ("compile m.onnx -q --batch 32", {"m.onnx": mixed_batch}),
    "opset_too_old": ("compile m.onnx -q", {"m.onnx": lambda: classifier(opset=6)}),
    "opset_and_ir_too_new": ("compile m.onnx -q", {"m.onnx": newer_ir}),
    "sequence_output": ("compile m.onnx -q", {"m.onnx": sequence_output}),
    "checkpoint_instead_of_onnx": ("compile m.pth -q", {"m.pth": b"PK\x03\x04archive/data.pkl"}),
    "no_such_model": ("compile mdoel.onnx -q", {}),
    "no_mapping": (
        "compile m.onnx -q --target mine.yaml",
        {"m.onnx": classifier, "mine.yaml": MACHINE + "gbuf:\n  size_bytes: 64\n"},
    ),
    "model_larger_than_dram": (
        "compile m.onnx -q --target mine.yaml",
        {"m.onnx": classifier, "mine.yaml": MACHINE + "dram:\n  size_bytes: 4096\n"},
    ),
    "misspelt_machine_key": (
        "compile m.onnx -q --target mine.yaml",
        {"m.onnx": classifier, "mine.yaml": MACHINE + "gbuf:\n  size_byte: 1048576\n"},
    ),
    "unit_in_a_machine_value": (
        "compile m.onnx -q --target mine.yaml",
        {"m.onnx": classifier, "mine.yaml": MACHINE + "gbuf:\n  size_bytes: 10 MiB\n"},
    ),
    "no_such_machine": ("compile m.onnx -q --target wavecor", {"m.onnx": classifier}),
    "several_arrays": (
        "compile m.onnx -q --target mine.yaml",
        {"m.onnx": classifier, "mine.yaml": MACHINE + "array:\n  units: 4\n"},
    ),
    "freeze_matches_nothing": ("compile m.onnx -q --freeze backbone.*", {"m.onnx": classifier}),
    "data_of_another_shape": (f"run m.onnx -q --inputs {NPZ}", {"m.onnx": classifier}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_message(name, golden, capsys, tmp_path, monkeypatch):
    command, files = CASES[name]
    for path, content in files.items():
        if callable(content):
            onnx.save(content(), tmp_path / path)
        else:
            data = content if isinstance(content, bytes) else content.encode()
            (tmp_path / path).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    code = cli.run(command.split())
    captured = capsys.readouterr()
    said = (captured.out + captured.err).replace(f"{NPZ.parent}/", "")
    said = re.sub(r"newer than \d+", "newer than N", said)  # that of the onnx package at hand
    text = f"$ ccnn {command}\n{said}exit code {int(code)}\n".replace(f"{NPZ.parent}/", "")
    assert str(tmp_path) not in text
    assert "Traceback" not in text
    assert "internal error" not in text
    golden(f"errors/newcomers/{name}.txt", text)
