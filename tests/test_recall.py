"""`ccnn compile` on what it has compiled before: the same bytes, and only when nothing changed."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, save
from onnx_models import build, r

from ccnn.compiler import cache, cli

FOUND = "unchanged, so taken from the cache"
MACHINE = "name: t\ndescription: {}\ninherits: tiny\ngbuf:\n  size_bytes: {}\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache that is in use, and empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CCNN_NO_CACHE")


def network() -> onnx.ModelProto:
    """A convolution and a classifier."""
    weights = {"w": r(4, 2, 3, 3), "v": r(3, 4)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["1"]),
        helper.make_node("Relu", ["1"], ["2"]),
        helper.make_node("GlobalAveragePool", ["2"], ["3"]),
        helper.make_node("Flatten", ["3"], ["4"]),
        helper.make_node("Gemm", ["4", "v"], ["5"], transB=1),
    ]
    return build(nodes, {"x": (4, 2, 6, 6)}, ["5"], weights)


@pytest.fixture
def model(tmp_path):
    """The file of a small network."""
    path = tmp_path / "small.onnx"
    save(network(), path)
    return path


@pytest.fixture
def compiled(tmp_path, model, capsys):
    """Compile into a fresh folder; gives the files, what was printed and said."""

    def run(*options, path=model):
        folder = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        command = ["compile", str(path), "--target", "tiny", *options, "-o", str(folder)]
        assert cli.run(command) == 0
        shown = capsys.readouterr()
        return {p.name: p.read_bytes() for p in folder.iterdir()}, shown.out, shown.err

    return run


def test_the_same_bytes_with_and_without(compiled):
    first, shown, _ = compiled()
    again, found, _ = compiled()
    anew, without, _ = compiled("--no-cache")
    assert first == again == anew
    assert [FOUND in text for text in (shown, found, without)] == [False, True, False]
    assert shown.partition("\nwrote ")[0] == found.partition("\nwrote ")[0]


def test_without_it_nothing_is_kept(compiled):
    compiled("--no-cache")
    assert not cache.folder().exists()


@pytest.mark.parametrize(
    "change",
    [
        ("--batch", "2"),
        ("--lr", "0.01"),  # the default, but no longer assumed
        ("--dtype", "float32"),
        ("--serialize", "mbs2"),
        ("--ablate",),
    ],
)
def test_options_are_part_of_the_key(compiled, change):
    compiled()
    assert FOUND not in compiled(*change)[1]
    assert FOUND in compiled(*change)[1]


def test_the_model_and_its_name_are_part_of_the_key(compiled, model, tmp_path):
    compiled()
    other = tmp_path / "other.onnx"
    other.write_bytes(model.read_bytes())
    assert FOUND not in compiled(path=other)[1]
    changed = network()
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(r(4, 2, 3, 3) + 1, "w"))
    save(changed, model)
    assert FOUND not in compiled()[1]


def test_external_data_is_part_of_the_key(compiled, tmp_path):
    path = tmp_path / "parts.onnx"
    options = {"save_as_external_data": True, "location": "parts.data", "size_threshold": 0}
    save(network(), path, **options)
    compiled(path=path)
    assert FOUND in compiled(path=path)[1]
    data = tmp_path / "parts.data"
    data.write_bytes((2 * np.frombuffer(data.read_bytes(), np.float32)).tobytes())
    assert FOUND not in compiled(path=path)[1]


def test_external_data_of_a_subgraph_is_found():
    from ccnn.compiler.recall import _external_files

    inner = build([helper.make_node("Relu", ["w"], ["o"])], {}, ["o"], {"w": r(2)}).graph
    held = inner.initializer[0].external_data.add()
    held.key, held.value = "location", "inner.data"
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    whole = build([node], {"x": ()}, ["y"])
    assert _external_files(whole.SerializeToString()) == ["inner.data"]


def test_a_machine_file_is_known_by_its_content(compiled, tmp_path):
    machine = tmp_path / "machine.yaml"
    machine.write_text(MACHINE.format("one", 16384))
    compiled("--target", str(machine))
    assert FOUND in compiled("--target", str(machine))[1]
    for description, size in (("one", 32768), ("two", 16384)):
        machine.write_text(MACHINE.format(description, size))
        assert FOUND not in compiled("--target", str(machine))[1]


def test_a_mapping_given_by_hand_is_known_by_its_content(compiled, tmp_path):
    files, _, _ = compiled()
    mapping = tmp_path / "mapping.txt"
    mapping.write_bytes(files["mapping.txt"])
    compiled("--from-mapping", str(mapping))
    assert FOUND in compiled("--from-mapping", str(mapping))[1]
    mapping.write_bytes(files["mapping.txt"] + b"\n")
    assert FOUND not in compiled("--from-mapping", str(mapping))[1]


def test_damaged_and_foreign_entries_are_made_anew(compiled, monkeypatch):
    first, _, _ = compiled()
    (entry,) = cache.folder().glob("*.entry")
    entry.write_bytes(entry.read_bytes()[:-9])
    again, shown, _ = compiled()
    assert FOUND not in shown
    assert again == first
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert FOUND not in compiled()[1]


@pytest.mark.parametrize("text", ["[]", "{}", '{"files": {"a": 1}, "warnings": []}', "no JSON"])
def test_an_entry_of_another_form_counts_as_absent(compiled, text, monkeypatch):
    monkeypatch.setattr(cache, "get", lambda kind, key: text)
    assert FOUND not in compiled()[1]


def test_json_and_dumped_passes(compiled, model, tmp_path, capsys):
    command = ["compile", str(model), "--target", "tiny", "--json"]
    assert cli.run(command) == 0
    fresh = capsys.readouterr().out
    compiled()
    assert cli.run(command) == 0
    assert capsys.readouterr().out == fresh
    _, shown, _ = compiled("--dump-passes", str(tmp_path / "passes"))
    assert FOUND not in shown
    assert len(list((tmp_path / "passes").iterdir())) > 2


def test_warnings_are_said_again(compiled, monkeypatch):
    from ccnn.compiler import actions

    said = ("ccnn: warning: odd\n",)
    monkeypatch.setattr(actions, "warnings_of", lambda compilation: said)
    _, _, first = compiled()
    _, shown, again = compiled()
    assert FOUND in shown
    assert first.count(said[0]) == again.count(said[0]) == 1


def test_errors_are_not_kept(model, capsys):
    model.write_bytes(b"no model")
    for _ in range(2):
        assert cli.run(["compile", str(model), "-q"]) == 3
    assert not cache.folder().exists()
    assert capsys.readouterr().err.count("ccnn: ") == 2
