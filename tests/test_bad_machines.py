"""Machine files that are wrong: each complaint names file, line and key, and says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccnn.targets.machine import MachineError, load_machine

HEAD = "name: mine\ndescription: d\ninherits: tiny\n"

BAD = [
    ("unknown key", HEAD + "array:\n  row: 4\n", ["line 5", "array.row", "did you mean rows"]),
    ("unknown section", HEAD + "arrays:\n  rows: 4\n", ["line 4", "arrays", "did you mean array"]),
    ("no close match", HEAD + "zzz: 1\n", ["line 4", "known keys", "clock_ghz"]),
    ("zero", HEAD + "array:\n  rows: 0\n", ["line 5", "array.rows is 0", "smallest value is 1"]),
    ("negative", HEAD + "dram:\n  latency_cycles: -1\n", ["line 5", "dram.latency_cycles"]),
    ("too large", HEAD + "array:\n  rows: 99999999\n", ["line 5", "the largest value is 65536"]),
    ("text for number", HEAD + "array:\n  rows: four\n", ["line 5", "a whole number", "'four'"]),
    ("exponent read as text", HEAD + "clock_ghz: 1e9\n", ["line 4", "1.0e+9"]),
    ("fraction for whole", HEAD + "vector:\n  lanes: 2.5\n", ["line 5", "vector.lanes", "2.5"]),
    ("bool for number", HEAD + "barrier_cycles: yes\n", ["line 4", "barrier_cycles", "yes"]),
    ("number for section", HEAD + "array: 4\n", ["line 4", "array must be a section"]),
    ("section for number", HEAD + "clock_ghz:\n  a: 1\n", ["line 4", "clock_ghz", "a number"]),
    ("list", HEAD + "array: [1, 2]\n", ["line 4", "array is a list"]),
    ("null", HEAD + "clock_ghz:\n", ["line 4", "clock_ghz must be a number"]),
    ("nan", HEAD + "clock_ghz: .nan\n", ["line 4", ".nan", "finite"]),
    ("infinite", HEAD + "clock_ghz: .inf\n", ["line 4", ".inf", "finite"]),
    ("base 60", HEAD + "barrier_cycles: 1:30\n", ["line 4", "base 60"]),
    ("date", HEAD + "clock_ghz: 2020-01-01\n", ["line 4", "timestamp"]),
    ("impossible date", HEAD + "clock_ghz: 2020-99-01\n", ["line 4", "clock_ghz"]),
    ("endless digits", HEAD + "barrier_cycles: " + "9" * 5000 + "\n", ["line 4", "plain digits"]),
    ("duplicate key", HEAD + "clock_ghz: 1\nclock_ghz: 2\n", ["line 5", "twice", "line 4"]),
    ("too many cores", HEAD + "cores: 17\n", ["line 4", "largest value is 16"]),
    ("unknown action", HEAD + "energy:\n  mac_8bit:\n    pj: 1\n", ["line 5", "mac_8bit"]),
    ("no source", HEAD + "energy:\n  mac_16bit:\n    pj: 1\n", ["line 5", "lacks the key source"]),
    ("bad name", "name: a b\ndescription: d\ninherits: tiny\n", ["line 1", "letters"]),
    ("missing section", "name: mine\ndescription: d\n", ["line 1", "lacks the key clock_ghz"]),
    ("unknown parent", "name: m\ninherits: tinny\n", ["line 2", "did you mean tiny"]),
    ("parent file missing", "name: m\ninherits: no.yaml\n", ["line 2", "cannot be read"]),
    ("parent a number", "name: m\ninherits: 3\n", ["line 2", "inherits must be the name"]),
    ("own parent", "name: m\ninherits: bad.yaml\n", ["line 2", "circle"]),
    ("no mapping", "- 1\n- 2\n", ["line 1", "not a machine"]),
    ("empty", "", ["line 1", "not a machine"]),
    ("not yaml", HEAD + "array: {rows: 1\n", ["line", "not YAML"]),
    ("tab", HEAD + "array:\n\trows: 1\n", ["line 5", "not YAML"]),
    ("two documents", HEAD + "---\na: 1\n", ["line 4", "not YAML"]),
    ("alias bomb", "a: &a [x, x]\nb: &b [*a, *a]\n", ["line 1", "anchors"]),
    ("python tag", HEAD + "clock_ghz: !!python/object:os.system 1\n", ["line 4", "write a number"]),
    ("deep", "a: " + "{b: " * 500 + "1" + "}" * 500 + "\n", ["line 1", "nested deeper"]),
    ("key a list", HEAD + "? [a, b]\n: 1\n", ["line 4", "single word"]),
    ("control characters", HEAD + "clock_ghz: \x07\n", ["not YAML"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_complaint_names_the_place(text: str, words: list[str], tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MachineError) as caught:
        load_machine(path)
    message = str(caught.value)
    assert "bad.yaml" in message
    for word in words:
        assert word in message
    assert len(message) < 500


def test_bytes_that_are_no_text(tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"name: mine\ndescription: \xff\xfe\n")
    with pytest.raises(MachineError, match="line 2: not UTF-8"):
        load_machine(path)


def test_large_file(tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_text("# " + "x" * 100_000)
    with pytest.raises(MachineError, match="more than 65536 bytes"):
        load_machine(path)


def test_circle_of_three(tmp_path: Path):
    for name, parent in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\ninherits: {parent}.yaml\n")
    with pytest.raises(MachineError, match="goes round in a circle"):
        load_machine(tmp_path / "a.yaml")


def test_error_in_the_parent_names_the_parent(tmp_path: Path):
    (tmp_path / "p.yaml").write_text(HEAD + "array:\n  rows: many\n")
    (tmp_path / "c.yaml").write_text("name: c\ndescription: c\ninherits: p.yaml\n")
    with pytest.raises(MachineError, match=r"p\.yaml, line 5: array\.rows"):
        load_machine(tmp_path / "c.yaml")


def test_unknown_name_lists_what_there_is():
    with pytest.raises(MachineError, match="did you mean wavecore"):
        load_machine("wavecor")


def test_folder(tmp_path: Path):
    with pytest.raises(MachineError, match="cannot be read"):
        load_machine(tmp_path)


def test_complaints_read_well(golden, tmp_path: Path):
    """The text of every complaint above, for the eye."""
    lines = []
    path = tmp_path / "bad.yaml"
    for title, text, _ in BAD:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(MachineError) as caught:
            load_machine(path)
        lines.append(f"{title}:\n  {str(caught.value).replace(str(tmp_path) + '/', '')}\n")
    golden("errors/machines.txt", "\n".join(lines))
