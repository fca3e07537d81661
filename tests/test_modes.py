"""Array modes as data of the machine file: what ships, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ccnn.compiler import CompileOptions, cli, compile_model
from ccnn.compiler.failure import ExitCode
from ccnn.targets.machine import MachineError, describe, load_machine
from ccnn.targets.modes import Mode

FLEXSA = ("flexsa-1g1c", "flexsa-1g4c", "flexsa-4g4c", "flexsa-1g1f", "flexsa-4g1f")
HEAD = "name: mine\ndescription: d\ninherits: tiny\narray:\n"


@pytest.mark.parametrize("name", FLEXSA)
def test_every_flexsa_machine_has_the_same_pes(name: str):
    machine = load_machine(name)
    assert machine.arrays * machine.rows * machine.cols == 16384
    assert machine.gbuf_bytes == 10 * 2**20


@pytest.mark.parametrize("name", ["flexsa-1g1f", "flexsa-4g1f", "ccnn-flex"])
def test_flexsa_modes_use_every_pe(name: str):
    machine = load_machine(name)
    modes = {m.name: m for m in machine.modes}
    assert list(modes)[:4] == ["FW", "VSW", "HSW", "ISW"]
    for mode in (modes[n] for n in ("FW", "VSW", "HSW", "ISW")):
        assert mode.pes == machine.rows * machine.cols
        assert mode.loads == 1
    assert (modes["VSW"].rows, modes["VSW"].cols) == (machine.rows, machine.cols // 2)
    assert (modes["HSW"].rows, modes["HSW"].cols) == (machine.rows // 2, machine.cols)


@pytest.mark.parametrize("side", [32, 64, 128])
def test_intergrad_takes_two_cycles_a_row_for_both_gradients(side: int):
    machine = load_machine(f"intergrad-{side}")
    pair = next(m for m in machine.modes if m.dataflow == "pair")
    assert (pair.rows, pair.cols, pair.turns) == (side, side, 2)
    assert machine.rows == machine.cols == side


def test_a_machine_without_modes_has_its_whole_array():
    machine = load_machine("tiny")
    assert machine.modes == ()
    assert machine.array_modes == (Mode("FW", 4, 4),)


def test_modes_count_in_the_fingerprint_and_their_absence_does_not():
    machine = load_machine("flexsa-1g1f")
    assert replace(machine, modes=machine.modes[:1]).fingerprint != machine.fingerprint
    assert replace(machine, groups=2).fingerprint != machine.fingerprint


BAD = [
    ("two large", "  modes:\n    A:\n      rows: 8\n      cols: 4\n", ["mode A is 8 x 4", "4 x 4"]),
    (
        "too many",
        "  modes:\n    A:\n      rows: 2\n      cols: 4\n      sub_waves: 4\n",
        ["uses 32 PEs", "lower its sub_waves"],
    ),
    ("no rows", "  modes:\n    A:\n      cols: 4\n", ["line 6", "lacks the key rows"]),
    (
        "unknown flow",
        "  modes:\n    A:\n      rows: 2\n      cols: 4\n      dataflow: is\n",
        ["line 9", "array.modes.A.dataflow is 'is'", "use one of ws, os, pair"],
    ),
    (
        "misspelt",
        "  modes:\n    A:\n      rows: 2\n      cols: 4\n      subwaves: 2\n",
        ["line 9", "did you mean sub_waves"],
    ),
    (
        "no ws",
        "  modes:\n    A:\n      rows: 2\n      cols: 4\n      dataflow: os\n",
        ["no mode has dataflow ws"],
    ),
    (
        "pair in one turn",
        "  modes:\n    A:\n      rows: 2\n      cols: 4\n      dataflow: pair\n",
        ["takes turns", "2 turns or more"],
    ),
    ("no groups", "  groups: 0\n", ["array.groups is 0", "smallest value is 1"]),
]


@pytest.mark.parametrize(("text", "words"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_wrong_mode_is_refused(text: str, words: list[str], tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(HEAD + text)
    with pytest.raises(MachineError) as caught:
        load_machine(path)
    for word in words:
        assert word in str(caught.value)


def test_description_lists_the_modes(golden):
    golden("targets/flexsa-4g1f.txt", describe(load_machine("flexsa-4g1f")))


def test_several_arrays_without_a_price_for_what_crosses_are_refused(capsys, tmp_path):
    program, path = tmp_path / "p.asm", tmp_path / "two.yaml"
    path.write_text("name: two\ndescription: d\ninherits: tiny\narray:\n  units: 2\n")
    with pytest.raises(MachineError, match="has 2 arrays"):
        compile_model("no-such.onnx", CompileOptions(target=str(path)))
    program.write_text("program p\nmachine tiny\ndtype f32\naccum f32\ndram 0\n", encoding="utf-8")
    assert cli.run(["simulate", str(program), "--target", "flexsa-4g1f"]) == 0
    assert cli.run(["simulate", str(program), "--target", str(path)]) == ExitCode.MACHINE
    assert "add energy.link_byte" in capsys.readouterr().err
