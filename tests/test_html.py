"""report.html and the files beside it: well-formed, self-contained, and true to the program."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path

import onnx
import pytest

from ccnn.compiler import CompileOptions, compile_model
from ccnn.compiler.annotate import LEFT_OUT, annotate_model
from ccnn.compiler.dump import GraphDump
from ccnn.compiler.report import build_report
from ccnn.compiler.report.build import group_rows
from ccnn.compiler.report.detail import TENSOR_CLASSES, edges, kernel_details, tensor_classes
from ccnn.compiler.report.html import report_html
from ccnn.compiler.report.lives import lives
from ccnn.compiler.report.notes import metric_rows
from ccnn.compiler.report.payload import class_traffic, layer_numbers, layer_traffic
from ccnn.passes.text import parse_graph
from ccnn.targets.machine import load_machine
from ccnn.targets.program import DTYPE_BYTES
from ccnn.targets.simulator import simulate

MODEL = Path(__file__).parent / "data" / "resnet8_cifar" / "model.onnx"
VOID = {"meta", "link", "input", "br", "rect"}


@pytest.fixture(scope="module")
def compilation():
    return compile_model(MODEL, CompileOptions(batch=4))


@pytest.fixture(scope="module")
def trace(compilation):
    return simulate(compilation.program, compilation.machine)


@pytest.fixture(scope="module")
def details(compilation, trace):
    return kernel_details(compilation.program, compilation.machine, trace.kernels)


@pytest.fixture(scope="module")
def report(compilation, trace):
    return build_report(compilation, trace, trace, ("machine wavecore (--target)",))


@pytest.fixture(scope="module")
def page(compilation, trace, details, report):
    c = compilation
    return report_html(report, c.program, c.machine, c.mapping.tilings, trace, details)


class Page(HTMLParser):
    """Ids, links and the nesting of elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.references: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[int] = []
        self.unlabelled: list[str] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if "id" in a:
            self.ids[a["id"]] += 1
        self.references += a.get("aria-labelledby", "").split()
        href = a.get("href", "")
        if href.startswith("#"):
            self.references.append(href[1:])
        self.addresses += [v for k, v in a.items() if k in ("href", "src") and v]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "svg" and "aria-label" not in a:
            self.unlabelled.append(tag)
        if tag in ("input", "select") and "label" not in self.open:
            self.unlabelled.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def data_of(page: str) -> dict:
    """The data that the page's script reads, made whole as it does."""
    packed = re.search(r'<script type="text/plain" id="data">([\w+/=]*)</script>', page)[1]
    data = json.loads(zlib.decompress(base64.b64decode(packed)))
    columns = data["layers"]
    data["layers"] = [
        dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
    ]
    for kernel in data["kernels"]:
        own = kernel["t"]
        kernel |= data["shapes"][kernel["k"]]
        kernel["e"] = kernel["s"] + kernel["c"]
        kernel["t"] = [[t, *moved] for t, moved in zip(own, kernel["t"], strict=True)]
    return data


# The page


def test_the_page_is_well_formed_and_every_reference_leads_somewhere(page):
    found = Page(page)
    assert found.wrong == []
    assert found.open == []
    assert [i for i, n in found.ids.items() if n > 1] == []
    assert set(found.references) <= set(found.ids)
    assert found.headings[0] == 1
    assert found.headings.count(1) == 1
    steps = pairwise(found.headings)
    assert all(after <= before + 1 for before, after in steps)
    assert found.unlabelled == []


def test_the_page_needs_no_network(page):
    outside = [a for a in Page(page).addresses if not a.startswith(("#", "data:"))]
    assert outside == []
    style = re.search("<style>(.*?)</style>", page, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page


def test_the_page_says_the_report(page, report):
    for row in report["layers"]:
        assert f">{row['node']}</bdi></a>" in page
    assert page.count("<tr id=") == len(report["layers"])
    for sentence in (*report["assumed_defaults"], *report["not_modelled"]):
        assert sentence.split("'")[0] in page
    for metric in metric_rows():
        assert metric["leaves_out"]
        assert metric["formula"].split("*")[0].split(">")[0].strip() in page


def test_names_of_the_model_stay_text(compilation, trace, details, report):
    c = compilation
    evil = "</script><b onload=x>&\u2028"
    program = replace(c.program, nodes=tuple(replace(n, origin=evil) for n in c.program.nodes))
    rows = [{**row, "node": evil} for row in report["layers"]]
    text = report_html({**report, "layers": rows}, program, c.machine, {}, trace, details)
    assert "<b onload" not in text
    assert Page(text).wrong == []
    assert data_of(text)["layers"][0]["node"] == evil


def test_the_data_adds_up_to_the_totals(page, report):
    data, totals = data_of(page), report["totals"]
    kernels = data["kernels"]
    assert kernels[-1]["e"] == totals["cycles"]
    assert all(a["e"] <= b["s"] for a, b in pairwise(kernels))
    moved = [sum(t[k] for kernel in kernels for t in kernel["t"]) for k in (1, 2)]
    assert moved == [totals["dram_read_bytes"], totals["dram_write_bytes"]]
    assert sum(k["i"] for k in kernels) == sum(row["instructions"] for row in report["layers"])
    busy = [sum(k["b"][n] for k in kernels) for n in range(len(data["engines"]))]
    assert busy == [e["busy_cycles"] for e in report["engines"]]
    assert all(0 <= n < len(data["layers"]) for kernel in kernels for n in kernel["l"])
    assert {n for kernel in kernels for n in kernel["l"]} == set(range(len(data["layers"])))


def test_the_same_compilation_gives_the_same_page(compilation, report, page):
    c = compilation
    assert report_html(report, c.program, c.machine, c.mapping.tilings) == page


# What the page is drawn from


def test_a_kernel_alone_takes_what_it_takes_in_the_step(trace, details):
    assert [(d.start, d.end) for d in details] == [(k.start, k.end) for k in trace.kernels]
    assert all(max((e.end for e in d.events), default=0) <= d.cycles for d in details)
    for n, engine in enumerate(trace.engines):
        assert sum(d.engines[n].busy_cycles for d in details) == engine.busy_cycles
    assert sum(d.counts.macs for d in details) == trace.macs


def test_tensor_classes_follow_the_phases(compilation, details, report):
    classes = tensor_classes(compilation.program)
    assert set(classes.values()) <= set(TENSOR_CLASSES)
    graph = compilation.lowered
    moved = {t.name for d in details for t in d.tensors}
    gradients = {graph.gradients[t.name] for t in graph.of_role("parameter")} & moved
    assert gradients
    assert {classes[name] for name in gradients} == {"weight gradient"}
    assert classes[compilation.model.outputs[0]] == "activation"
    found = class_traffic(compilation.program, details)
    read = sum(r for r, _ in found.values())
    assert read == report["totals"]["dram_read_bytes"]
    assert found["parameter", "update"][1] > 0
    rows = layer_numbers(report, compilation.program)
    by_layer = layer_traffic(compilation.program, details, rows)
    for number, row in enumerate(report["layers"]):
        moved_bytes = row["dram_read_bytes"] + row["dram_write_bytes"]
        assert sum(by_layer.get(number, {}).values()) == moved_bytes
    assert ("gradient", "forward") not in found
    assert ("activation", "update") not in found


def test_a_buffer_of_a_group_is_there_while_its_nodes_need_it():
    """Places that lie over each other are there at different times, and what is kept from pass
    to pass is there all the time: as the plan of the group says it."""
    small = replace(load_machine("wavecore"), gbuf_bytes=2**20)
    c = compile_model(MODEL, CompileOptions(small, 32, norm="group", serialize="mbs2"))
    assert any(row["passes"] > 1 for row in group_rows(c))
    numbers = {ref.name: n for n, ref in enumerate(c.program.nodes)}
    kernels = {k.name: k for k in c.program.kernels}
    for row, group in zip(group_rows(c), c.lowered.groups, strict=True):
        kernel = kernels[row["kernel"]]
        found = lives(kernel, sorted(numbers[n] for n in row["nodes"]))
        placed = [b for b in kernel.buffers if b.space == "gbuf"]
        assert found.keys() >= {b.name for b in placed}
        for a, b in combinations(placed, 2):
            ends = [x.address + x.size * x.depth * DTYPE_BYTES[x.dtype] for x in (a, b)]
            if a.address < ends[1] and b.address < ends[0]:
                (a0, a1), (b0, b1) = found[a.name], found[b.name]
                assert a1 < b0 or b1 < a0, (a.name, b.name)
        kept = {f"r.{t}" for t in group.kept} & found.keys()
        assert kept or row["passes"] == 1
        assert {found[name] for name in kept} <= {(0, len(row["nodes"]) - 1)}


def test_edges_lead_forward_along_the_graph(compilation, report):
    program = compilation.program
    rows = layer_numbers(report, program)
    assert len(rows) == len(program.nodes)
    found = edges(program)
    assert found
    assert all(e.bytes >= 0 and e.source != e.target for e in found)
    first = next(n for n, ref in enumerate(program.nodes) if ref.op == "conv")
    assert any(e.source == first for e in found)


# The files beside it


def test_the_annotated_model_is_the_model_with_costs_and_without_weights(compilation, report):
    data = annotate_model(MODEL, compilation, report)
    annotated, plain = onnx.load_from_string(data), onnx.load(MODEL)
    assert len(data) < MODEL.stat().st_size or len(data) < 100_000
    assert [n.output for n in annotated.graph.node] == [n.output for n in plain.graph.node]
    conv = next(n for n in annotated.graph.node if n.op_type == "Conv")
    facts = {p.key: p.value for p in conv.metadata_props}
    row = next(r for r in report["layers"] if r["node"] == conv.name and r["phase"] == "forward")
    assert facts["ccnn.forward.cycles"] == f"{row['cycles']:,}"
    assert any(key.startswith("ccnn.forward.tiles.") for key in facts)
    for a, b in zip(annotated.graph.initializer, plain.graph.initializer, strict=True):
        assert list(a.dims) == list(b.dims)
        if a.external_data:
            assert a.external_data[0].value == LEFT_OUT
            assert not a.raw_data


def test_dumped_graphs_parse_back(tmp_path):
    dump = GraphDump(tmp_path / "graphs")
    c = compile_model(MODEL, CompileOptions(batch=1), on_graph=dump.see)
    files = sorted((tmp_path / "graphs").iterdir())
    assert [f.name for f in files[:3]] == [
        "00-read.ccnn", "01-differentiate.ccnn", "02-simplify.ccnn"
    ]  # fmt: skip
    last = parse_graph(files[-1].read_text())
    assert [n.name for n in last.nodes] == [n.name for n in c.lowered.nodes]
