"""trace.pftrace, read with Perfetto's own protocol buffers, says what was simulated."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb

from ccnn.compiler import CompileOptions, compile_model
from ccnn.compiler.report import build_report
from ccnn.compiler.report.detail import kernel_details
from ccnn.compiler.report.perfetto import perfetto_trace
from ccnn.compiler.report.protobuf import message
from ccnn.targets.program import ENGINES
from ccnn.targets.simulator import simulate

MODEL = Path(__file__).parent / "data" / "resnet8_cifar" / "model.onnx"
CLEARED = pb.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
NEEDED = pb.TracePacket.SEQ_NEEDS_INCREMENTAL_STATE


@given(st.integers(0, 2**64 - 1), st.floats(allow_nan=False), st.text(), st.integers(0, 2**32 - 1))
def test_messages_are_as_protobuf_writes_them(whole, fraction, text, short):
    event = pb.TrackEvent(track_uuid=whole, double_counter_value=fraction, name=text)
    ours = message((11, whole), (23, text), (44, fraction))
    assert ours == event.SerializeToString(deterministic=True)
    packet = pb.TracePacket(track_event=event, trusted_packet_sequence_id=short)
    assert pb.TracePacket.FromString(message((10, short), (11, ours))) == packet


@dataclass(frozen=True)
class Slice:
    """A slice as a viewer shows it."""

    name: str
    category: str
    start: int
    end: int
    args: dict[str, int | str]


class Shown:
    """A trace as a viewer reads it; an assertion fails where one would be lost."""

    def __init__(self, data: bytes) -> None:
        self.trace = pb.Trace.FromString(data)
        self.tracks: dict[int, pb.TrackDescriptor] = {}
        self.slices: dict[str, list[Slice]] = defaultdict(list)
        self.samples: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self.names: dict[str, dict[int, str]] = {}
        self.open: dict[str, list] = defaultdict(list)
        self.now: dict[str, int] = defaultdict(int)
        for packet in self.trace.packet:
            assert_all_known(packet)
            assert packet.trusted_packet_sequence_id == 1
            if packet.sequence_flags & CLEARED:
                self.names = interned(packet.interned_data)
            elif packet.HasField("track_descriptor"):
                assert packet.track_descriptor.uuid not in self.tracks
                assert packet.track_descriptor.name not in {t.name for t in self.tracks.values()}
                self.tracks[packet.track_descriptor.uuid] = packet.track_descriptor
            else:
                assert packet.HasField("timestamp")
                assert packet.sequence_flags == NEEDED
                self.event(packet.timestamp, packet.track_event)
        assert not any(self.open.values())

    def event(self, at: int, event: pb.TrackEvent) -> None:
        track = self.tracks[event.track_uuid]
        assert at >= self.now[track.name]
        self.now[track.name] = at
        if track.HasField("counter"):
            assert event.type == pb.TrackEvent.TYPE_COUNTER
            self.samples[track.name].append((at, event.double_counter_value))
        elif event.type == pb.TrackEvent.TYPE_SLICE_BEGIN:
            self.open[track.name].append((at, event))
        else:
            assert event.type == pb.TrackEvent.TYPE_SLICE_END
            start, first = self.open[track.name].pop()
            (category,) = first.category_iids
            args = {
                self.names["debug_annotation_names"][a.name_iid]: self.value(a)
                for a in first.debug_annotations
            }
            assert len(args) == len(first.debug_annotations)
            self.slices[track.name].append(
                Slice(
                    self.names["event_names"][first.name_iid],
                    self.names["event_categories"][category],
                    start,
                    at,
                    args,
                )
            )

    def value(self, argument: pb.DebugAnnotation) -> int | str:
        if argument.WhichOneof("value") == "string_value_iid":
            return self.names["debug_annotation_string_values"][argument.string_value_iid]
        assert argument.WhichOneof("value") == "uint_value"
        return argument.uint_value


def assert_all_known(found) -> None:
    """Every field, at every depth, is one that Perfetto knows."""
    assert len(UnknownFieldSet(found)) == 0
    for field, value in found.ListFields():
        if field.message_type is not None:
            for part in (value,) if isinstance(value, Message) else value:
                assert_all_known(part)


def interned(data: pb.InternedData) -> dict[str, dict[int, str]]:
    """Kind of name to its texts by number; none twice."""
    made = {}
    for field, entries in data.ListFields():
        texts = [e.str.decode() if hasattr(e, "str") else e.name for e in entries]
        made[field.name] = dict(zip([e.iid for e in entries], texts, strict=True))
        assert len(made[field.name]) == len(set(texts)) == len(entries)
        assert 0 not in made[field.name]
    return made


@pytest.fixture(scope="module", params=["none", "mbs2"])
def made(request):
    """A compilation, its report and details, and its trace read back."""
    c = compile_model(MODEL, CompileOptions(batch=4, norm="group", serialize=request.param))
    trace = simulate(c.program, c.machine, events=True, max_events=10**6)
    report = build_report(c, trace, trace)
    details = kernel_details(c.program, c.machine, trace.kernels)
    data = perfetto_trace(report, c.program, c.machine, details)
    assert perfetto_trace(report, c.program, c.machine, details) == data
    return c, trace, report, details, Shown(data)


def test_tracks_are_named_and_ordered(made):
    c, _, _, _, shown = made
    root, *others = shown.tracks.values()
    assert root.name == f"{c.program.name} on {c.machine.name}"
    assert root.child_ordering == pb.TrackDescriptor.EXPLICIT
    assert {t.parent_uuid for t in others} == {root.uuid}
    ranks = [t.sibling_order_rank for t in others]
    assert ranks == sorted(set(ranks))
    names = [t.name for t in others]
    assert names == ["kernels", *ENGINES, "DRAM bytes", "MACs"]
    assert set(shown.slices) == {"kernels", *ENGINES}


def test_kernels_stand_where_they_ran(made):
    _, trace, report, _, shown = made
    clock = report["machine"]["clock_ghz"]
    found = shown.slices["kernels"]
    assert [(s.name, s.start, s.end) for s in found] == [
        (k.name, round(k.start / clock), round(k.end / clock)) for k in trace.kernels
    ]
    assert [s.args["cycles"] for s in found] == [k.end - k.start for k in trace.kernels]
    for name in ("macs", "dram_read_bytes", "dram_write_bytes", "instructions"):
        assert sum(s.args[name] for s in found) == getattr(trace, name)
    assert found[-1].end == pytest.approx(1e9 * report["totals"]["seconds"], abs=1)
    rows = {f"{row['node']} ({row['phase']})": row["phase"] for row in report["layers"]}
    assert {part for s in found for part in s.args["layers"].split(", ")} == set(rows)
    assert all(s.category == rows[s.args["layers"].split(", ")[0]] for s in found)


def test_instructions_are_those_of_the_simulated_step(made):
    c, trace, _, details, shown = made
    ran = defaultdict(list)
    for e in trace.events:
        ran[e.engine].append((e.opcode, c.program.nodes[e.node].name, e.start, e.end - e.start))
    for engine in ENGINES:
        alone = [s for s in shown.slices[engine] if s.category != "summary"]
        said = [
            (s.name, s.args["node"], s.args["start_cycle"], s.args["written_after_cycles"])
            for s in alone
        ]
        assert len(said) == sum(e.engine == engine for d in details for e in d.events)
        left = iter(ran[engine])
        assert all(each in left for each in said), "not instructions of the step, in its order"
        starts = [s.start for s in shown.slices[engine][1:]] + [shown.slices["kernels"][-1].end]
        for s, following in zip(shown.slices[engine], starts, strict=True):
            if s.category != "summary":
                start, written = s.args["start_cycle"], s.args["written_after_cycles"]
                assert s.start == round(start / c.machine.clock_ghz)
                assert s.end == min(following, round((start + written) / c.machine.clock_ghz))


def test_every_instruction_is_a_slice_or_counted_in_one(made):
    _, trace, _, _, shown = made
    count = 0
    for engine in trace.engines:
        for s in shown.slices[engine.name]:
            count += int(s.name.split()[0]) if s.category == "summary" else 1
        last = shown.slices[engine.name]
        assert all(a.end <= b.start for a, b in pairwise(last)), "slices of an engine overlap"
    assert count == trace.instructions


def test_counters_add_up_to_the_totals(made):
    _, trace, _, _, shown = made
    starts = [k.start for k in trace.kernels]
    for name, total in (("DRAM bytes", trace.dram_bytes), ("MACs", trace.macs)):
        *samples, last = shown.samples[name]
        assert last == (shown.slices["kernels"][-1].end, 0.0)
        assert [at for at, _ in samples] == [s.start for s in shown.slices["kernels"]]
        spans = [k.end - start for k, start in zip(trace.kernels, starts, strict=True)]
        assert sum(v * n for (_, v), n in zip(samples, spans, strict=True)) == pytest.approx(total)


def test_any_name_may_be_in_a_trace(made):
    c, _, report, details, shown = made
    strange = 'naïve "層" \n\u2028 <b>'
    program = replace(c.program, name=strange)
    found = Shown(perfetto_trace(report, program, c.machine, details))
    assert next(iter(found.tracks.values())).name == f"{strange} on {c.machine.name}"
    assert found.slices == shown.slices


def test_a_trace_of_nothing_is_one(made):
    c, _, report, _, shown = made
    found = Shown(perfetto_trace(report, c.program, c.machine, ()))
    assert found.tracks == shown.tracks
    assert not found.slices
