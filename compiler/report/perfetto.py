"""trace.pftrace: the step as a trace that Perfetto (ui.perfetto.dev) opens.

In Perfetto's own format, as track events: below one track that bears the program's name lie a
track of kernels, one of each engine, and counters.  Slices of one track must nest, so an
instruction's slice ends where its engine takes the next one, and its arguments say when its
result was written.  Of each kernel only the first instructions are slices; what an engine did
after them is one slice with its totals.  Times are nanoseconds, rounded; arguments have cycles.

Every name stands in the file once, in the first packet, and is a number (iid) everywhere else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ccnn.compiler.report.detail import KernelDetail
from ccnn.compiler.report.payload import layer_numbers
from ccnn.compiler.report.protobuf import Value, message
from ccnn.targets.machine import Machine
from ccnn.targets.program import ENGINES, Program
from ccnn.targets.simulator.trace import Event

# Numbers of the fields that are written, by the message they belong to.
_PACKET = 1  # of Trace
_TIMESTAMP, _SEQUENCE, _TRACK_EVENT, _INTERNED, _FLAGS, _TRACK = 8, 10, 11, 12, 13, 60
_UUID, _NAME, _PARENT, _COUNTER, _CHILD_ORDERING, _RANK = 1, 2, 5, 8, 11, 12  # of TrackDescriptor
_UNIT = 6  # of CounterDescriptor
_CATEGORY_IID, _ARGUMENT, _TYPE, _NAME_IID, _TRACK_UUID, _VALUE = 3, 4, 9, 10, 11, 44  # TrackEvent
_ARGUMENT_IID, _WHOLE_NUMBER, _TEXT_IID = 1, 3, 17  # of DebugAnnotation
_CATEGORIES, _EVENT_NAMES, _ARGUMENT_NAMES, _TEXTS = 1, 2, 3, 29  # of InternedData
_STATE_CLEARED, _NEEDS_STATE = 1, 2  # what a packet's flags say
_BEGIN, _END, _SAMPLE = 1, 2, 4  # types of track events
_EXPLICIT = 3  # an ordering of child tracks

_ROOT, _KERNELS, _ENGINES, _COUNTERS = 1, 2, 3, 3 + len(ENGINES)  # tracks
COUNTERS = (("DRAM bytes", "per cycle"), ("MACs", "per cycle"))
"""Names and units of the counters: averages over each kernel."""


@dataclass
class _Names:
    """What is interned: by kind, each text and its number from 1."""

    kinds: dict[int, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))

    def iid(self, kind: int, text: str) -> int:
        known = self.kinds[kind]
        return known.setdefault(text, len(known) + 1)

    def argument(self, key: str, value: int | str) -> bytes:
        """An argument of a slice."""
        if isinstance(value, str):
            said = _TEXT_IID, self.iid(_TEXTS, value)
        else:
            said = _WHOLE_NUMBER, value
        return message((_ARGUMENT_IID, self.iid(_ARGUMENT_NAMES, key)), said)

    def packet(self) -> bytes:
        """The first packet: all of them, and that readers begin anew here."""
        interned = message(
            *(
                (kind, message((1, iid), (2, text)))
                for kind, known in sorted(self.kinds.items())
                for text, iid in known.items()
            )
        )
        return _packet((_FLAGS, _STATE_CLEARED | _NEEDS_STATE), (_INTERNED, interned))


def perfetto_trace(
    report: Mapping[str, Any],
    program: Program,
    machine: Machine,
    details: Sequence[KernelDetail],
) -> bytes:
    """The step as a Perfetto trace, a packet for each track and each end of a slice."""
    rows = layer_numbers(report, program)
    write = _Writer(program, machine.clock_ghz)
    packets = []
    for detail in details:
        layers = [report["layers"][n] for n in dict.fromkeys(rows[n] for n in detail.nodes)]
        packets += write.kernel(detail, layers)
        for number in range(len(ENGINES)):
            packets += write.engine(detail, number)
        packets += write.counters(detail)
    if details:
        packets += write.samples(details[-1].end, (0.0,) * len(COUNTERS))
    head = [write.names.packet(), *_tracks(f"{program.name} on {machine.name}")]
    return b"".join([*head, *packets])


def _packet(*fields: tuple[int, Value]) -> bytes:
    return message((_PACKET, message((_SEQUENCE, 1), *fields)))


def _tracks(title: str) -> Iterator[bytes]:
    """Every track, in the order in which they are shown."""
    yield _packet((_TRACK, message((_UUID, _ROOT), (_NAME, title), (_CHILD_ORDERING, _EXPLICIT))))
    plain = [(_KERNELS, "kernels"), *((_ENGINES + n, e) for n, e in enumerate(ENGINES))]
    for uuid, name in plain:
        yield _packet((_TRACK, message(*_place(uuid, name))))
    for n, (name, unit) in enumerate(COUNTERS):
        counter = (_COUNTER, message((_UNIT, unit)))
        yield _packet((_TRACK, message(*_place(_COUNTERS + n, name), counter)))


def _place(uuid: int, name: str) -> tuple[tuple[int, Value], ...]:
    return (_UUID, uuid), (_NAME, name), (_PARENT, _ROOT), (_RANK, uuid)


@dataclass(frozen=True)
class _Writer:
    """Packets of the slices and counters of one program."""

    program: Program
    clock_ghz: float
    names: _Names = field(default_factory=_Names)

    def _event(self, cycle: int, kind: int, track: int, *fields: tuple[int, Value]) -> bytes:
        event = message((_TYPE, kind), (_TRACK_UUID, track), *fields)
        return _packet(
            (_TIMESTAMP, round(cycle / self.clock_ghz)),
            (_FLAGS, _NEEDS_STATE),
            (_TRACK_EVENT, event),
        )

    def _slice(
        self, track: int, name: str, category: str, span: tuple[int, int], args: Mapping[str, Any]
    ) -> tuple[bytes, bytes]:
        """Begin and end of a slice; `span` in cycles of the step."""
        names = self.names
        arguments = [(_ARGUMENT, names.argument(key, value)) for key, value in args.items()]
        named = (
            (_CATEGORY_IID, names.iid(_CATEGORIES, category)),
            (_NAME_IID, names.iid(_EVENT_NAMES, name)),
        )
        return (
            self._event(span[0], _BEGIN, track, *named, *arguments),
            self._event(span[1], _END, track),
        )

    def kernel(
        self, detail: KernelDetail, layers: Sequence[Mapping[str, Any]]
    ) -> tuple[bytes, bytes]:
        """The slice of a kernel."""
        args = {
            "layers": ", ".join(f"{row['node']} ({row['phase']})" for row in layers),
            "cycles": detail.cycles,
            "macs": detail.counts.macs,
            "dram_read_bytes": detail.counts.dram_read_bytes,
            "dram_write_bytes": detail.counts.dram_write_bytes,
            "instructions": detail.counts.instructions,
        }
        phase = layers[0]["phase"] if layers else "empty"
        return self._slice(_KERNELS, detail.name, phase, (detail.start, detail.end), args)

    def engine(self, detail: KernelDetail, number: int) -> Iterator[bytes]:
        """The slices of one engine in one kernel."""
        own = [e for e in detail.events if e.engine == ENGINES[number]]
        for place, event in enumerate(own):
            end = min(event.end, own[place + 1].start) if place + 1 < len(own) else event.end
            ref = self.program.nodes[event.node]
            args = {
                "node": ref.name,
                "start_cycle": detail.start + event.start,
                "written_after_cycles": event.end - event.start,
            }
            span = detail.start + event.start, detail.start + end
            yield from self._slice(_ENGINES + number, event.opcode, ref.phase, span, args)
        left = detail.engines[number].counts.instructions - len(own)
        if left > 0:
            yield from self._rest(detail, own, number, left)

    def _rest(
        self, detail: KernelDetail, own: Sequence[Event], number: int, left: int
    ) -> tuple[bytes, bytes]:
        """What an engine did after the instructions that are shown one by one."""
        trace = detail.engines[number]
        stalls: dict[str, int] = defaultdict(int)
        for cause, cycles in trace.stalls:
            stalls[f"waits_for_{cause}_cycles_of_kernel"] += cycles
        start = detail.start + max((e.end for e in own), default=0)
        return self._slice(
            _ENGINES + number,
            f"{left} more instructions",
            "summary",
            (min(start, detail.end), detail.end),
            {"busy_cycles_of_kernel": trace.busy_cycles, **stalls},
        )

    def counters(self, detail: KernelDetail) -> Iterator[bytes]:
        """The counters from the start of a kernel on."""
        cycles, counts = max(1, detail.cycles), detail.counts
        moved = counts.dram_read_bytes + counts.dram_write_bytes
        return self.samples(detail.start, (moved / cycles, counts.macs / cycles))

    def samples(self, cycle: int, values: Sequence[float]) -> Iterator[bytes]:
        """The values of all counters from a cycle on."""
        for number, value in enumerate(values):
            yield self._event(cycle, _SAMPLE, _COUNTERS + number, (_VALUE, value))
