"""Mappings of one GEMM as text: printed, read back, edited; and the command `ccnn map`."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnn.compiler import cli
from ccnn.compiler.failure import ExitCode
from ccnn.compiler.mapper.array import Product, Rules
from ccnn.compiler.mapper.array_cost import price_cut
from ccnn.compiler.mapper.array_search import map_product
from ccnn.compiler.mapper.array_text import parse_cut, print_cut
from ccnn.compiler.mapping import MappingError
from ccnn.targets.machine import load_machine

RULES = Rules()
NAMES = ["flexsa-1g4c", "flexsa-1g1f", "flexsa-4g1f", "ccnn-flex"]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(m=st.integers(1, 5000), n=st.integers(1, 700), k=st.integers(1, 5000))
def test_text_is_read_back_as_it_was(name: str, m: int, n: int, k: int):
    machine, product = load_machine(name), Product(m, n, k)
    cut = map_product(product, machine).cut
    assert parse_cut(print_cut(product, name, cut), machine, RULES) == (product, cut)


SHAPES = [(1568, 512, 4608), (100352, 64, 147), (333, 555, 777), (512, 64, 200), (3, 300, 77)]


@pytest.mark.parametrize("name", ["flexsa-1g1f", "flexsa-4g1f"])
def test_the_heuristics_cuts_read_well(golden, name: str):
    """A rule's result, so that no release of the solver rewrites it."""
    machine = load_machine(name)
    texts = [
        print_cut(p, name, map_product(p, machine, mapper="heuristic").cut)
        for p in (Product(*shape) for shape in SHAPES)
    ]
    golden(f"mapper/{name}.txt", "\n".join(texts))


def test_an_edited_cut_is_priced_as_it_says():
    """All blocks in single sub-cores: a quarter of the rows for 36 times 4 blocks of a quarter."""
    machine = load_machine("flexsa-1g1f")
    text = (
        "gemm 512 x 128 x 256 on flexsa-1g1f\nflow b stays\ngroups 1 x 1 x 1\nunits 1 x 1 x 1\n"
        "waves 512 * 1\nstrip 64 * 2: ISW 64 * 4\n\nwhat stands below is not read\n"
    )
    product, cut = parse_cut(text, machine, RULES)
    assert price_cut(product, machine, RULES, cut, "pinned").array_cycles == 2 * 4 * 128


GOOD = [
    "gemm 512 x 128 x 256 on flexsa-1g1f", "flow b stays", "groups 1 x 1 x 1", "units 1 x 1 x 1",
    "waves 512 * 1", "strip 128 * 1: FW 128 * 2",
]  # fmt: skip
WRONG = [
    (0, "gemm 512 x 128 on flexsa-1g1f", "line 1: .* is not M x N x K"),
    (0, "gemm 512 x 0 x 256 on flexsa-1g1f", "line 1: .* is not M x N x K"),
    (0, "gemm 512 x 128 x 256 on wavecore", "line 1: .*machine 'wavecore', not flexsa-1g1f"),
    (0, "hello", "line 1: 'hello' should begin with 'gemm'"),
    (1, "flow result stays", "line 2: no flow 'result stays' here; use b stays, a stays"),
    (2, "groups 2 x 1 x 1", "2 parts and flexsa-1g1f has 1 groups"),
    (4, "waves 500 * 1", "the waves cover 500 and should cover 512"),
    (4, "waves 512", "line 5: '512' is not size . count"),
    (4, "waves 512 * 0", "line 5: .* is not size . count"),
    (5, "strip 64 * 1: FW 128 * 2", "the strips cover 64 and should cover 128"),
    (5, "strip 128 * 1: FW 128 * 1", "blocks of the strip 128 cover 128 and should cover 256"),
    (5, "strip 128 * 1: FX 128 * 2", "line 6: no mode 'FX' on flexsa-1g1f; it has FW, VSW"),
    (5, "strip 128 * 1: VSW 128 * 2", "128 x 128 in mode VSW, which holds 128 x 64"),
    (5, "strip 128 * 1: FW 256 * 1", "256 x 128 in mode FW, which holds 128 x 128"),
    (5, "strap 128 * 1: FW 128 * 2", "line 6: .* should be 'strip"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "text", "words"), WRONG)
def test_a_wrong_edit_is_refused(line: int, text: str, words: str):
    lines = list(GOOD)
    parse_cut("\n".join(lines), load_machine("flexsa-1g1f"), RULES)
    lines[line] = text
    with pytest.raises(MappingError, match=words):
        parse_cut("\n".join(lines), load_machine("flexsa-1g1f"), RULES)


def test_waves_longer_than_the_buffers_are_refused():
    lines = ["gemm 600 x 128 x 256 on flexsa-1g1f", *GOOD[1:4], "waves 600 * 1", GOOD[5]]
    with pytest.raises(MappingError, match="600 rows, and the local buffers hold 512"):
        parse_cut("\n".join(lines), load_machine("flexsa-1g1f"), RULES)
    with pytest.raises(MappingError, match="too short"):
        parse_cut("gemm", load_machine("flexsa-1g1f"), RULES)


# the command


def test_map_prints_json_with_units_in_the_keys(capsys):
    assert cli.run(["map", "512", "64", "200", "--target", "flexsa-1g1f", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["macs"] == 512 * 64 * 200
    assert facts["gap"] == 0
    assert facts["cycles"] == facts["value"] == facts["bound"] >= facts["floor"]
    assert facts["cycles"] == max(
        facts["array_cycles"] + facts["fill_cycles"] + facts["reduce_cycles"],
        facts["dram_cycles"],
    )
    assert sum(facts["mode_share"].values()) == pytest.approx(1)
    assert sum(s["width"] * s["count"] for s in facts["strips"]) == facts["part_mnk"][1]


def test_idealisations_only_take_away(capsys):
    found = []
    for more in (["--ideal-memory", "--no-fill-drain"], ["--ideal-memory"], []):
        assert cli.run(["map", "100352", "64", "147", "--json", *more]) == 0
        found.append(json.loads(capsys.readouterr().out)["cycles"])
    assert found[0] < found[1] < found[2]


def test_a_printed_mapping_is_fed_back(capsys, tmp_path):
    command = ["map", "333", "555", "777", "--target", "flexsa-4g1f"]
    assert cli.run(command) == 0
    text = capsys.readouterr().out
    assert "optimal" in text
    path = tmp_path / "mapping.txt"
    path.write_text(text)
    assert cli.run([*command, "--from-mapping", str(path), "--json"]) == 0
    pinned = json.loads(capsys.readouterr().out)
    assert pinned["mapper"] == "pinned"
    assert pinned["gap"] == 0
    path.write_text(text.replace("gemm 333", "gemm 334"))
    assert cli.run([*command, "--from-mapping", str(path)]) == ExitCode.INPUT
    assert "mapping.txt maps the GEMM 334" in capsys.readouterr().err
    path.write_bytes(b"\xff")
    assert cli.run([*command, "--from-mapping", str(path)]) == ExitCode.INPUT
    assert cli.run([*command, "--from-mapping", str(tmp_path / "none")]) == ExitCode.FILES


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["0", "1", "1"], ExitCode.USAGE),
        (["1", "1"], ExitCode.USAGE),
        (["99999999999", "1", "1"], ExitCode.INPUT),
        (["1", "1", "1", "--target", "wavecor"], ExitCode.MACHINE),
        (["1", "1", "1", "--mapper", "guess"], ExitCode.USAGE),
    ],
)
def test_what_makes_no_sense_is_refused(capsys, arguments, code):
    assert cli.run(["map", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err


def test_the_exact_mapper_beats_the_heuristic_on_the_command_line(capsys):
    found = {}
    for mapper in ("exact", "heuristic"):
        assert cli.run(["map", "40", "300", "77", "--mapper", mapper, "--json"]) == 0
        found[mapper] = json.loads(capsys.readouterr().out)["cycles"]
    # 40 moving rows do not hide a shift-in of 77; 300 rows past the other operand do
    assert found["exact"] < found["heuristic"]
