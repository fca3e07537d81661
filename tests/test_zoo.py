"""benchmarks/zoo.py and mbs.py: networks of their published sizes, rows that add up."""

from __future__ import annotations

import json
import sys
from math import prod
from pathlib import Path

import onnx
import pytest
from reference import DATA

FOLDER = Path(__file__).parent.parent / "benchmarks"
SIZES = {  # convolutions, parameters, multiply-accumulates of one image forward, side
    "resnet50": (53, 25_557_032, 4_089_184_256, 224),
    "resnet101": (104, 44_549_160, 7_801_405_440, 224),
    "resnet152": (155, 60_192_808, 11_513_626_624, 224),
    "inception_v3": (94, 23_834_568, 5_713_216_096, 299),
    "inception_v4": (149, 42_679_816, 12_253_974_624, 299),
    "alexnet": (5, 62_378_344, 1_135_256_096, 227),
    "densenet121": (120, 7_978_856, 2_834_161_664, 224),
    "mobilenet_v2": (52, 3_504_872, 300_774_272, 224),
    "efficientnet_b0": (81, 5_288_548, 385_814_752, 224),
    "resnext50": (53, 25_028_904, 4_230_479_872, 224),
    "vgg16": (13, 138_357_544, 15_470_264_320, 224),
}
"""Parameters are those that torchvision and timm state for these networks (AlexNet: with one tower
and 96, 256, 384, 384, 256 channels, counted by hand)."""


@pytest.fixture(scope="module", autouse=True)
def _importable():
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def measured(model: onnx.ModelProto) -> tuple[int, int, int, int]:
    """Convolutions, parameters, multiply-accumulates and side, from onnx's own inferred shapes."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    known = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    shape = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in known}
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    weights = [n.output[0] for n in model.graph.node if n.op_type == "ConstantOfShape"]
    macs = 0
    for node in layers:
        out, w = shape[node.output[0]], shape[node.input[1]]
        macs += prod(out) * prod(w[1:])
    state = [n for n in weights if n.endswith((".mean", ".var"))]
    parameters = sum(prod(shape[w]) for w in weights) - sum(prod(shape[s]) for s in state)
    return sum(n.op_type == "Conv" for n in layers), parameters, macs, shape["input"][2]


@pytest.mark.parametrize("name", SIZES)
def test_networks_have_their_published_sizes(name):
    import zoo

    model = zoo.NETWORKS[name]()
    onnx.checker.check_model(model, full_check=True)
    assert measured(model) == SIZES[name]


def test_every_network_has_a_published_size():
    import zoo

    assert set(SIZES) == set(zoo.NETWORKS)


def test_a_network_is_written_as_a_small_file(tmp_path, capsys):
    import zoo

    assert zoo.main(["resnet50", "-o", str(tmp_path)]) == 0
    assert (tmp_path / "resnet50.onnx").stat().st_size < 200_000
    with pytest.raises(SystemExit):
        zoo.main(["resnet51"])
    assert "no network 'resnet51'" in capsys.readouterr().err


def test_lanes_are_measured_against_the_array_alone(capsys, monkeypatch):
    import lanes

    monkeypatch.setitem(lanes.MODELS, "mobilenetv1", lambda: DATA / "mobilenetv1" / "model.onnx")
    assert lanes.main(["mobilenetv1", "--batch", "8", "--schedule", "none"]) == 0
    array, either = (line.split("|") for line in capsys.readouterr().out.splitlines()[2:])
    assert [array[3].strip(), either[3].strip()] == ["array", "either"]
    cycles = [int(row[4].replace(",", "")) for row in (array, either)]
    assert cycles[1] < cycles[0]
    assert array[5] == either[5]  # DRAM


@pytest.mark.slow
def test_rows_add_up_and_are_kept(tmp_path, capsys):
    import mbs

    model, kept = str(DATA / "mobilenetv1" / "model.onnx"), tmp_path / "rows.json"
    asked = ["table", "blocks", "--net", model, "--gbuf", "1", "--save", str(kept)]
    assert mbs.main(asked) == 0
    printed = capsys.readouterr().out
    rows = json.loads(kept.read_text())
    assert [r["schedule"] for r in rows["table"]] == ["baseline", "IL", "full", "mbs1", "mbs2"]
    for row in (*rows["table"], *rows["blocks"]):
        assert sum(row["classes"].values()) == row["dram_bytes"]
        assert f"| {row['schedule']} | {row['dram_bytes'] / 2**30:.3f} |" in printed
    dram = {r["schedule"]: r["dram_x"] for r in (*rows["table"], *rows["blocks"])}
    assert dram["baseline"] == 1
    assert dram["mbs2"] <= dram["mbs1"] < 1
    assert dram["BRCB"] < dram["BRC"] < 1
    mbs.save(kept, "blocks", [{**rows["blocks"][0], "groups": 7}])  # in place of the old row
    again = json.loads(kept.read_text())
    assert again["table"] == rows["table"]
    assert sorted(r["groups"] for r in again["blocks"] if r["schedule"] == "baseline") == [7]
    assert len(again["blocks"]) == len(rows["blocks"])


def test_unknown_parts_and_networks_are_refused(capsys):
    import mbs

    for wrong, said in ((["tables"], "no part 'tables'"), (["--net", "nets"], "no network 'nets'")):
        with pytest.raises(SystemExit):
            mbs.main(wrong)
        assert said in capsys.readouterr().err


def test_a_pruned_network_has_the_widths_of_the_log():
    """Every convolution of the file as the GEMM lists have it."""
    import together
    from resnet50_gemms import pruned

    model = together.pruned_model("0.2")
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        s.name.removesuffix(".shape"): onnx.numpy_helper.to_array(s)
        for s in model.graph.initializer
    }
    found = [tuple(shapes[n.input[1]]) for n in model.graph.node if n.op_type == "Conv"]
    assert found == [(v.k, v.c, v.r, v.s) for v in pruned("0.2", 90).convs]
    with pytest.raises(SystemExit):
        together.main(["dens"])
