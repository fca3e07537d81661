"""`ccnn bugreport`: the bundle shows the same problem, and holds no name, weight or text."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ccnn.compiler import bugreport, cli
from ccnn.compiler.scramble import Names, scramble

DATA = Path(__file__).parent / "data"
MODELS = (
    "resnet8_cifar/model.onnx", "resnet8_cifar/model.dynamo.onnx", "squeezenet/model.train.onnx",
    "mobilenetv1/model.onnx", "convnext/model.onnx", "inception/model.dynamo.onnx",
)  # fmt: skip


@pytest.fixture
def ccnn(capsys):
    """Run the command in this process; gives exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.run([str(a) for a in arguments])
        captured = capsys.readouterr()
        return int(code), captured.out, captured.err

    return run


@pytest.fixture
def bundle(ccnn, tmp_path):
    """Make a bundle; gives the folder it was unpacked into, its facts and what was printed."""

    def make(model: Path, *options: object) -> tuple[Path, dict, str]:
        packed, folder = tmp_path / "b.zip", tmp_path / "b"
        code, text, _ = ccnn("bugreport", model, *options, "-o", packed)
        assert code == 0, text
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(folder)
        return folder, json.loads((folder / "bugreport.json").read_text()), text

    return make


def again(ccnn, folder: Path, facts: dict, monkeypatch) -> tuple[int, str, str]:
    """Do what the bundle says, where the bundle is."""
    monkeypatch.chdir(folder)
    return ccnn(*facts["command"][1:], "--json", "-q")


def save(path: Path, nodes, weights=(), shape=(1, 3, 8, 8), domains=()) -> Path:
    """Write a model with the input `secret_in` and the output `y`."""
    graph = helper.make_graph(
        nodes, "secret_net",
        [helper.make_tensor_value_info("secret_in", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info("y")],
        [w if isinstance(w, TensorProto) else numpy_helper.from_array(w[1], w[0]) for w in weights],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(d, 1) for d in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    "name",
    [MODELS[2], *(pytest.param(m, marks=pytest.mark.slow) for m in (*MODELS[:2], *MODELS[3:]))],
)
def test_a_bundle_compiles_to_the_same_totals(ccnn, bundle, monkeypatch, name):
    folder, facts, text = bundle(DATA / name, "--batch", 2, "--momentum", 0.9)
    assert facts["the_bundle_shows_the_same"]
    assert "the model in it gives the same" in text
    code, found, _ = again(ccnn, folder, facts, monkeypatch)
    assert code == 0
    code, original, _ = ccnn(
        "compile", DATA / name, "--batch", 2, "--momentum", 0.9, "--json", "-q"
    )
    for key, total in facts["outcome"]["totals"].items():
        assert json.loads(found)["totals"][key] == json.loads(original)["totals"][key] == total


@pytest.mark.parametrize("name", MODELS)
def test_no_name_and_no_weight_is_left(name):
    model = onnx.load(DATA / name)
    scrambled, names = scramble(model, None)
    text = scrambled.SerializeToString()
    # Shorter names are also found in attributes and operators: "a" in "pads".
    assert not [n for n in names.new if len(n) > 5 and n.encode() in text]
    old = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    new = {t.name: numpy_helper.to_array(t) for t in scrambled.graph.initializer}
    drawn = 0
    for key, array in old.items():
        other = new[names[key]]
        assert other.shape == array.shape
        assert other.dtype == array.dtype
        if array.dtype.kind == "f" and np.unique(array).size > 1:
            drawn += 1
            assert np.isin(array, other).mean() < 0.01  # a few may meet by chance
    assert drawn > 10
    assert [n.op_type for n in scrambled.graph.node] == [n.op_type for n in model.graph.node]


def test_every_text_of_a_file_goes_unless_it_is_listed(tmp_path):
    nodes = [
        helper.make_node("Frob", ["secret_in"], ["a"], "node_secret", domain="com.acme",
                         code="secret code", codes=["secret"], doc_string="secret"),
        helper.make_node("Constant", [], ["k"], value_string="secret"),
        helper.make_node("Constant", [], ["f"], value_floats=[0.5, 0.25, 0.125]),
        helper.make_node("AveragePool", ["a"], ["y"], kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
    ]  # fmt: skip
    model = onnx.load(save(tmp_path / "m.onnx", nodes, shape=("secret_batch", 3, 8, 8)))
    model.producer_name, model.domain, model.doc_string = "pytorch", "secret", "secret"
    model.metadata_props.add(key="secret", value="secret")
    model.graph.doc_string = "secret"
    model.graph.quantization_annotation.add(tensor_name="secret_in")
    inner = helper.make_node("Relu", ["secret_x"], ["secret_y"])
    ids = [helper.make_opsetid("", 17)]
    model.functions.append(
        helper.make_function("secret.domain", "SecretBlock", ["secret_x"], ["secret_y"], [inner],
                             ids)
    )  # fmt: skip
    model.opset_import.append(helper.make_opsetid("secret.domain", 1))
    model.graph.node.add(op_type="SecretBlock", domain="secret.domain", input=["a"], output=["b"])
    scrambled, _ = scramble(model, None)
    assert "secret" not in str(scrambled).lower()
    assert scrambled.producer_name == "pytorch"
    assert scrambled.graph.node[3].attribute[0].s == b"SAME_UPPER"
    assert 0.25 not in scrambled.graph.node[2].attribute[0].floats
    call, function = scrambled.graph.node[4], scrambled.functions[0]
    assert (call.domain, call.op_type) == (function.domain, function.name)


def test_what_decides_shapes_and_bounds_stays(tmp_path):
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    weights = [
        ("pads", pads), ("low", np.float32(-1)), ("scales", np.float32([1, 1, 2, 2])),
        ("quantised", np.arange(-4, 4, dtype=np.int8)), ("bias", np.arange(4, dtype=np.int32)),
        ("ones", np.ones(7, np.float32)), ("variance", np.float32([0.5, 2, 1])),
        ("odd", np.float32([np.nan, 1, np.inf])),
    ]  # fmt: skip
    nodes = [
        helper.make_node("Pad", ["secret_in", "pads"], ["a"]),
        helper.make_node("Resize", ["a", "", "scales"], ["b"]),
        helper.make_node("Clip", ["b", "low"], ["y"]),
        helper.make_node("DequantizeLinear", ["bias", "low"], ["c"]),
    ]
    model = onnx.load(save(tmp_path / "m.onnx", nodes, weights))
    scrambled, names = scramble(model, None)
    new = {t.name: numpy_helper.to_array(t) for t in scrambled.graph.initializer}
    for key, value in weights[:3]:
        assert (new[names[key]] == value).all()
    for key, value in weights[3:5]:
        assert not (new[names[key]] == value).all(), key
    assert (new[names["ones"]] == 1).all()
    assert (new[names["variance"]] > 0).all()
    assert np.isnan(new[names["odd"]][0])
    assert np.isinf(new[names["odd"]][2])


def test_the_same_input_gives_the_same_bytes(ccnn, tmp_path):
    model = DATA / "squeezenet" / "model.onnx"
    for name in ("one.zip", "two.zip"):
        assert ccnn("bugreport", model, "-q", "-o", tmp_path / name)[0] == 0
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def failing(tmp_path: Path) -> dict[str, Path]:
    """Models that are not accepted, each for another reason."""
    far = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 3, 3, 3])
    far.data_location = TensorProto.EXTERNAL
    far.external_data.add(key="location", value="secret.bin")
    broken = weight(4, 3, 3, 3)
    broken[0, 0, 0, 0] = np.nan
    conv = helper.make_node("Conv", ["secret_in", "w"], ["y"], "features/conv")
    relu = helper.make_node("Relu", ["secret_in"], ["y"])
    frob = helper.make_node("Frobnicate", ["secret_in"], ["y"], "features/frob")
    top = helper.make_node("TopK", ["secret_in", "k"], ["y", "i"], "a")
    return {
        "operator": save(tmp_path / "operator.onnx", [frob]),
        "selects": save(tmp_path / "selects.onnx", [top], [("k", np.array([2]))]),
        "channels": save(tmp_path / "channels.onnx", [conv], [("w", weight(4, 5, 3, 3))]),
        "file": save(tmp_path / "file.onnx", [conv], [far]),
        "nan": save(tmp_path / "nan.onnx", [conv], [("w", broken)]),
        "axis": save(tmp_path / "axis.onnx", [relu], shape=("N", 3, "height", 8)),
    }


@pytest.mark.parametrize("name", ["operator", "selects", "channels", "file", "nan", "axis"])
def test_a_model_that_is_refused_is_refused_alike(ccnn, bundle, monkeypatch, tmp_path, name):
    folder, facts, text = bundle(failing(tmp_path)[name])
    assert facts["the_bundle_shows_the_same"], text
    assert facts["outcome"]["exit_code"] == 3
    code, _, message = again(ccnn, folder, facts, monkeypatch)
    assert code == 3
    assert facts["outcome"]["message"] in message
    everything = b"".join(path.read_bytes() for path in folder.iterdir())
    for secret in (b"secret", b"features", b"height"):
        assert secret not in everything


def test_a_refused_machine_is_part_of_it(ccnn, bundle, monkeypatch, tmp_path):
    machine = tmp_path / "mine.yaml"
    machine.write_text("name: mine\ndescription: d\ninherits: tiny\ngbuf:\n  size_byte: 5\n")
    folder, facts, _ = bundle(DATA / "squeezenet" / "model.onnx", "--target", machine)
    assert facts["the_bundle_shows_the_same"]
    assert again(ccnn, folder, facts, monkeypatch)[0] == 4
    assert "gbuf.size_byte is not a key" in facts["outcome"]["message"]


def test_a_machine_that_inherits_is_written_whole(bundle, tmp_path):
    machine = tmp_path / "mine.yaml"
    machine.write_text("name: mine\ndescription: d\ninherits: tiny\n")
    folder, facts, _ = bundle(DATA / "squeezenet" / "model.onnx", "--target", machine)
    assert facts["the_bundle_shows_the_same"]
    assert "inherits" not in (folder / "machine.yaml").read_text()


@pytest.mark.parametrize("pattern", ["features.init_block.*", "no.such.*"])
def test_freeze_means_the_same_parameters(bundle, pattern):
    model = DATA / "resnet8_cifar" / "model.onnx"
    _, facts, text = bundle(model, "--freeze", pattern, "--batch", 2)
    assert facts["the_bundle_shows_the_same"], text
    assert pattern not in json.dumps(facts)


def test_a_mapping_that_was_given_is_part_of_it(ccnn, bundle, monkeypatch, tmp_path):
    model = DATA / "squeezenet" / "model.onnx"
    assert ccnn("compile", model, "--target", "tiny", "-q", "-o", tmp_path / "out")[0] == 0
    mapping = tmp_path / "out" / "mapping.txt"
    folder, facts, text = bundle(model, "--target", "tiny", "--from-mapping", mapping)
    assert facts["the_bundle_shows_the_same"], text
    assert str(tmp_path) not in json.dumps(facts)
    assert "/features" not in (folder / "mapping.txt").read_text()
    assert again(ccnn, folder, facts, monkeypatch)[0] == 0


def test_a_bug_comes_with_its_traceback_but_no_path(ccnn, bundle, monkeypatch, tmp_path):
    def crash(*_):
        raise ZeroDivisionError("something of n12 broke")

    monkeypatch.setattr("ccnn.compiler.actions.simulate", crash)
    model = DATA / "squeezenet" / "model.onnx"
    _, facts, _ = bundle(model)
    assert facts["outcome"]["exit_code"] == 6
    assert facts["outcome"]["error"] == "ZeroDivisionError"
    trace = facts["outcome"]["traceback"]
    assert any(line.startswith("ccnn/compiler/actions.py:") for line in trace)
    assert not any(line.startswith("/") for line in trace)
    code, _, message = ccnn("compile", model, "-o", tmp_path / "out")
    assert code == 6
    assert "`ccnn bugreport MODEL`" in message


def test_a_bundle_that_shows_something_else_says_so(ccnn, monkeypatch, tmp_path):
    # A problem that hangs on a name: it cannot be in the bundle, and must not be claimed.
    model = shutil.copy(DATA / "squeezenet" / "model.onnx", tmp_path / "odd.onnx")
    real = bugreport.outcome

    def outcome(path, settings, progress):
        found = real(path, settings, progress)
        if Path(path).name == "odd.onnx":
            secret = f"{tmp_path}/odd.onnx: initializer 'features.init_block.conv.weight' is odd"
            return bugreport.Outcome(6, None, "KeyError", secret)
        return found

    monkeypatch.setattr(bugreport, "outcome", outcome)
    code, text, _ = ccnn("bugreport", model, "-o", tmp_path / "b.zip")
    assert code == 0
    assert "does not give the same: compiled" in text
    with zipfile.ZipFile(io.BytesIO((tmp_path / "b.zip").read_bytes())) as archive:
        facts = json.loads(archive.read("bugreport.json"))
        assert "NOT the same" in archive.read("README.txt").decode()
    assert not facts["the_bundle_shows_the_same"]
    assert "init_block" not in facts["outcome"]["message"]
    assert str(tmp_path) not in facts["outcome"]["message"]


def test_a_file_that_is_no_model_cannot_be_packed(ccnn, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(bytes(range(256)) * 4)
    code, _, message = ccnn("bugreport", path, "-o", tmp_path / "b.zip")
    assert code == 3
    assert "is no ONNX model" in message
    assert not (tmp_path / "b.zip").exists()


def test_messages_are_compared_but_for_names():
    names = Names(["w", "a", "onnx::Conv_3", "conv1"])
    new = {name: names[name] for name in names.new}
    assert names.same("Conv 'conv1': a weight 'w' [3]", f"Conv '{new['conv1']}': a weight "
                      f"'{new['w']}' [3]")  # fmt: skip
    assert names.same("onnx::Conv_3: bad", f"{new['onnx::Conv_3']}: bad")
    assert not names.same("Conv 'w': 3 bytes", f"Conv '{new['w']}': 4 bytes")
    assert not names.same("Conv 'w': bad", f"Conv '{new['a']}': bad")
    assert not names.same("Conv 'w': bad", f"Conv '{new['w']}': bad, and more")


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("bugreport {model} -o {place}/no/b.zip", 5, "cannot write"),
        ("bugreport {model} -o {place}", 5, "cannot write"),
        ("bugreport {model} --target nothing -o {place}/b.zip", 4, "no machine is called"),
        ("export {model} -o {place}/no/step.onnx", 5, "cannot write"),
        ("run {model} --inputs {inputs} --save-results {place}/no/r.npz", 5, "cannot write"),
        ("diff {model} {place}", 5, "is a file; give the folder"),
    ],
)
def test_what_cannot_work_is_said_before_the_work(ccnn, tmp_path, command, code, message):
    folder = DATA / "resnet8_cifar"
    names = {"model": folder / "model.onnx", "inputs": folder / "inputs.npz", "place": tmp_path}
    found, out, err = ccnn(*command.format(**names).split())
    assert (found, out) == (code, "")
    (line,) = err.splitlines()
    assert line.startswith("ccnn: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []
