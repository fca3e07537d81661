"""The report: schema, sums, bounds against numbers worked out by hand, text and table."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import jsonschema
import onnx
import pytest

from ccnn.compiler import CompileOptions, compile_model
from ccnn.compiler.report import Precision, bounds, build_report, layers_csv, report_schema
from ccnn.compiler.report.bounds import compulsory_read_bytes, compulsory_write_bytes, count_macs
from ccnn.compiler.report.fields import LAYER_EXTRAS, LAYER_TOTALS, TOTALS, quantity
from ccnn.compiler.report.show import show_report, worst_layers
from ccnn.passes.graph import Builder
from ccnn.targets.machine import load_machine
from ccnn.targets.simulator import simulate

DATA = Path(__file__).parent / "data"
HALF = Precision(float_bytes=2, accum_bytes=4)
ADDITIVE = (
    "cycles", "macs", "dram_read_bytes", "dram_write_bytes", "gbuf_bytes", "lbuf_bytes",
)  # fmt: skip


@pytest.fixture(scope="module")
def report() -> dict:
    """The report of a small real network."""
    c = compile_model(DATA / "mobilenetv1" / "model.onnx", CompileOptions(target="wavecore"))
    trace = simulate(c.program, c.machine)
    return build_report(c, trace, trace, ("machine wavecore (--target)",))


def test_it_follows_its_schema(report):
    schema = report_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(json.dumps(report, allow_nan=False)), schema)


def test_the_schema_refuses_a_report_with_a_missing_total(report):
    broken = {**report, "totals": {k: v for k, v in report["totals"].items() if k != "cycles"}}
    with pytest.raises(jsonschema.ValidationError, match="cycles"):
        jsonschema.validate(broken, report_schema())


def test_every_figure_has_a_unit_and_a_formula(report):
    figures = {*report["totals"], *report["layers"][0]} - {"node", "kind", "phase", "ops"}
    assert figures == set(report["fields"])
    assert all(entry["unit"] and entry["formula"] for entry in report["fields"].values())


def test_totals_bounds_and_baseline_have_the_same_keys(report):
    keys = {f.key for f in TOTALS}
    for part in ("totals", "bounds", "baseline", "bound_formulas"):
        assert set(report[part]) == keys
    assert all(b["formula"] and b["why"] for b in report["bound_formulas"].values())


def test_the_schedule_is_the_baseline(report):
    assert report["baseline"] == report["totals"]


@pytest.mark.parametrize("key", ADDITIVE)
def test_layers_add_up_to_the_total(report, key):
    assert sum(layer[key] for layer in report["layers"]) == report["totals"][key]


def test_energy_adds_up_over_layers_and_over_actions(report):
    total = report["totals"]["energy_pj"]
    assert sum(layer["energy_pj"] for layer in report["layers"]) == pytest.approx(total, rel=1e-9)
    assert sum(row["energy_pj"] for row in report["energy"]) == pytest.approx(total, rel=1e-9)


def test_traffic_adds_up_over_tensors(report):
    for key in ("dram_read_bytes", "dram_write_bytes"):
        assert sum(t[key] for t in report["tensors"]) == report["totals"][key]


def test_layers_are_unique_and_named_after_onnx_nodes(report):
    rows = [(layer["node"], layer["phase"]) for layer in report["layers"]]
    assert len(rows) == len(set(rows))
    convolutions = [r for r in report["layers"] if "conv" in r["ops"]]
    assert all(r["phase"] == "forward" and "Conv" in r["node"] for r in convolutions)
    nodes = onnx.load(DATA / "mobilenetv1" / "model.onnx").graph.node
    assert len(convolutions) == sum(node.op_type == "Conv" for node in nodes)


def test_shares_and_utilisation(report):
    assert sum(layer["share"] for layer in report["layers"]) == pytest.approx(1.0)
    machine, totals = report["machine"], report["totals"]
    capacity = totals["cycles"] * machine["rows"] * machine["cols"]
    assert totals["pe_utilisation"] == pytest.approx(totals["macs"] / capacity)
    assert totals["seconds"] == pytest.approx(totals["cycles"] / (machine["clock_ghz"] * 1e9))


@pytest.mark.parametrize("name", ["resnet8_cifar", "mobilenetv1", "inception", "convnext"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_no_total_is_better_than_its_bound(name, dtype):
    c = compile_model(DATA / name / "model.onnx", CompileOptions(dtype=dtype))
    trace = simulate(c.program, c.machine)
    report = build_report(c, trace, trace)
    for key, bound in report["bounds"].items():
        total = report["totals"][key]
        if report["bound_formulas"][key]["direction"] == "at most":
            assert total <= bound, key
        else:
            assert total >= bound, key
    assert report["totals"]["macs"] < 1.5 * report["bounds"]["macs"]


# Bounds of small graphs, worked out by hand


def convolution(stride: int, kernel: int, trained: bool = True):
    """x[2,3,8,8] with w[5,3,k,k]; the updated weight is w itself plus the output's sum."""
    b = Builder("one")
    x = b.input("x", (2, 3, 8, 8))
    w = b.declare("w", (5, 3, kernel, kernel), "parameter")
    y = b.emit(
        "conv", [x, w], name="y", strides=(stride, stride), pads=(0, 0, 0, 0), dilations=(1, 1),
        group=1,
    )  # fmt: skip
    if trained:
        b.updates["w"] = b.emit("map", [w], name="new", exprs=("a * 0.5",), dtypes=("float",))
    return b.build([y])


def test_bounds_of_a_dense_convolution():
    graph = convolution(stride=1, kernel=3)
    out = 2 * 5 * 6 * 6
    macs = out * 3 * 3 * 3
    weights = 5 * 3 * 3 * 3
    image = 2 * 3 * 8 * 8
    read, write = 2 * (image + weights), 2 * (weights + out)
    machine = load_machine("tiny")
    found = {b.key: b.value for b in bounds(graph, machine, HALF)}
    assert found["macs"] == macs
    assert found["dram_read_bytes"] == read
    assert found["dram_write_bytes"] == write
    assert found["gbuf_bytes"] == read + write + 2 * (image + weights + out)
    assert found["lbuf_bytes"] == 2 * -(-macs // 4)
    channel = -(-(read + write) * machine.clock_ghz * 1e9 // (machine.dram_bandwidth_gib_s * 2**30))
    assert found["cycles"] == max(-(-macs // 16), channel)
    assert found["seconds"] == pytest.approx(found["cycles"] / (machine.clock_ghz * 1e9))
    assert found["pe_utilisation"] == pytest.approx(macs / (16 * found["cycles"]))
    pj = machine.energy_pj
    energy = (
        macs * pj["mac_16bit"] + (read + write) * pj["dram_byte"]
        + found["gbuf_bytes"] * pj["gbuf_byte"] + found["lbuf_bytes"] * pj["lbuf_byte"]
        + found["cycles"] * pj["static_cycle"]
    )  # fmt: skip
    assert found["energy_pj"] == pytest.approx(energy)


def test_a_strided_1x1_convolution_needs_a_quarter_of_its_input():
    graph = convolution(stride=2, kernel=1)
    assert count_macs(graph) == 2 * 5 * 4 * 4 * 3
    assert compulsory_read_bytes(graph, HALF) == 2 * (2 * 3 * 4 * 4 + 5 * 3)


@pytest.mark.parametrize("op", ["conv", "conv_dx", "conv_dw"])
def test_taps_on_padding_need_not_be_multiplied(op):
    b = Builder("padded")
    x, w, y = (2, 3, 8, 8), (5, 3, 3, 3), (2, 5, 4, 4)
    attrs = {"strides": (2, 2), "pads": (1, 1, 0, 0), "dilations": (1, 1), "group": 1}
    if op == "conv":
        out = b.emit(op, [b.input("x", x), b.input("w", w)], **attrs)
    elif op == "conv_dx":
        out = b.emit(op, [b.input("y", y), b.input("w", w)], shape=x, **attrs)
    else:
        out = b.emit(op, [b.input("x", x), b.input("y", y)], shape=w, **attrs)
    # each way 4 outputs times 3 taps, of which the first tap of the first output is padding
    assert count_macs(b.build([out])) == 2 * 5 * 3 * 11 * 11


def test_a_parameter_that_nothing_reads_need_not_be_read():
    b = Builder("idle")
    x = b.input("x", (4,))
    b.declare("unused", (1000,), "parameter")
    graph = b.build([b.emit("map", [x], exprs=("a + 1",), dtypes=("accum",))])
    assert compulsory_read_bytes(graph, HALF) == 4 * 2
    assert compulsory_write_bytes(graph, HALF) == 4 * 4


def test_a_reshaped_output_is_written_once():
    b = Builder("names")
    x = b.input("x", (4, 4))
    y = b.emit("map", [x], exprs=("a + 1",), dtypes=("float",))
    z = b.emit("reshape", [y], shape=(16,))
    assert compulsory_write_bytes(b.build([y, z]), HALF) == 16 * 2


# Text and table


def test_the_table_holds_every_layer_and_figure(report):
    rows = list(csv.DictReader(io.StringIO(layers_csv(report["layers"]))))
    assert len(rows) == len(report["layers"])
    assert {f.key for f in (*LAYER_TOTALS, *LAYER_EXTRAS)} <= set(rows[0])
    assert sum(int(row["cycles"]) for row in rows) == report["totals"]["cycles"]


def test_a_node_called_like_a_formula_stays_text(report):
    layer = {**report["layers"][0], "node": '=cmd("x"), "y"'}
    (row,) = csv.DictReader(io.StringIO(layers_csv([layer])))
    assert row["node"] == '\'=cmd("x"), "y"'


def test_the_screen_shows_machine_assumptions_totals_and_worst_layers(report):
    out = io.StringIO()
    show_report(report, out)
    text = out.getvalue()
    assert "on wavecore: 128x128 array at 0.7 GHz" in text
    assert "assumed: machine wavecore (--target)" in text
    assert f"{report['totals']['cycles']:,}" in text
    assert f"{worst_layers(report['layers'])[0]['cycles']:,}" in text
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) < 50


def test_verbose_shows_every_layer_bound_and_omission(report):
    out = io.StringIO()
    show_report(report, out, verbose=True)
    words = " ".join(out.getvalue().split())
    assert f"all {len(report['layers'])} layers" in words
    for formula in report["bound_formulas"].values():
        assert formula["why"].split()[0] in words
    for sentence in report["not_modelled"]:
        assert " ".join(sentence.split()) in words


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("cycles", 1234567, "1,234,567"),
        ("seconds", 0.1267, "127 ms"),
        ("seconds", 3.0e-6, "3.00 us"),
        ("macs", 389e9, "389 GMAC"),
        ("macs", 12, "12 MAC"),
        ("dram_read_bytes", 1023, "1023 B"),
        ("dram_read_bytes", 3 * 2**20, "3.00 MiB"),
        ("energy_pj", 2.4e12, "2.40 J"),
        ("energy_pj", 0, "0.00 pJ"),
        ("pe_utilisation", 0.2675, "26.8 %"),
    ],
)
def test_quantities_carry_units(key, value, text):
    assert quantity(key, value) == text
