"""The machine: one core of a systolic-array accelerator and what its actions cost.

A machine is a YAML file: nested, units in the key names, `inherits:` for "as that one, but".
Reading goes over YAML nodes rather than plain values, so that every complaint can name the file,
the line and the key.  The shape is a JSON Schema beside the shipped machines.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from fractions import Fraction
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import jsonschema
import yaml

from ccnn.targets.machine_yaml import Document, KeyPath, MachineError, read_document
from ccnn.targets.modes import Mode, check_modes, describe_modes, read_modes, splits, spread
from ccnn.targets.plugins import plugin_machine, plugin_machines

__all__ = ["EnergyRow", "Machine", "MachineError", "describe", "load_machine", "shipped_machines"]


@dataclass(frozen=True)
class EnergyRow:
    """What one action costs in picojoules, and where that number comes from."""

    action: str
    pj: float
    source: str


@dataclass(frozen=True)
class Machine:
    """One core: a rows x cols weight-stationary array, its buffers, a vector unit and DRAM.

    Feeding the array takes a row of `cols` (stationary) or `rows` (moving) words each cycle.
    Array, local buffers and accumulators are those of one unit; `groups` x `units` of them work in
    step and share the DRAM.  Each group has an equal part of the global buffer; addresses go round
    the groups, so all but one part in `groups` of what an array is fed comes from another group.
    """

    name: str
    description: str
    clock_ghz: float
    rows: int
    cols: int
    weight_buffers: int
    """Weight registers in each PE: 1, or 2 when the next weights shift in during a wave."""
    lbuf_v_slots: int
    """Tiles of rows x cols stationary words."""
    lbuf_h_rows: int
    """Rows of `rows` words in one slot of the moving operand's buffer."""
    lbuf_h_slots: int
    acc_rows: int
    """Rows of `cols` words in one slot of the accumulation buffer."""
    acc_slots: int
    gbuf_bytes: int
    lanes: int
    vector_startup_cycles: int
    dram_bandwidth_gib_s: float
    dram_latency_cycles: int
    dram_bytes: int
    barrier_cycles: int
    energy: tuple[EnergyRow, ...]
    cores: int = 1
    """Cores like this one, each with memory and bandwidth of its own share of the DRAM; all run the
    same program, on their parts of the mini-batch."""
    groups: int = 1
    units: int = 1
    port_words: int = 0
    """Words a cycle that a group's buffer gives to each of the two feeds, and takes from the drain,
    of all its units together; 0 where every array has ports of its own."""
    modes: tuple[Mode, ...] = ()
    """Empty where the array has its one shape only; see `array_modes`."""

    def __post_init__(self) -> None:
        may_be_zero = {"vector_startup_cycles", "dram_latency_cycles", "barrier_cycles"}
        may_be_zero.add("port_words")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not value > (
                -1 if field.name in may_be_zero else 0
            ):
                raise MachineError(f"machine {self.name}: {field.name} is {value}; make it larger")
        check_modes(self.name, self.rows, self.cols, self.modes)

    @cached_property
    def bytes_per_cycle(self) -> Fraction:
        """DRAM bytes moved each cycle, exactly: bandwidth in GiB/s over clock in GHz."""
        per_second = Fraction(str(self.dram_bandwidth_gib_s)) * 2**30
        return per_second / (Fraction(str(self.clock_ghz)) * 10**9)

    @cached_property
    def energy_pj(self) -> dict[str, float]:
        """Picojoules by action."""
        return {row.action: row.pj for row in self.energy}

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any number of the machine, not with its words."""
        facts = asdict(self)
        del facts["description"]
        facts["energy"] = [[row.action, row.pj] for row in self.energy]
        plain = {"groups": 1, "units": 1, "port_words": 0, "modes": ()}  # as before there were any
        facts = {k: v for k, v in facts.items() if k not in plain or v != plain[k]}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def peak_macs_per_cycle(self) -> int:
        """Multiply-accumulates that all arrays can do in one cycle."""
        return self.arrays * self.rows * self.cols

    @cached_property
    def mode_named(self) -> dict[str, Mode]:
        """Modes by name, on several arrays also spread; the whole of one array has the name ''."""
        found = {"": Mode("", self.rows, self.cols)} | {mode.name: mode for mode in self.modes}
        if self.arrays > 1:
            ways = [spread(m, s) for m in self.array_modes for s in splits(self.arrays)]
            found |= {mode.name: mode for mode in ways if mode.dataflow != "pair"}
        return found

    @property
    def arrays(self) -> int:
        """Arrays that work at the same time, each on its part of a GEMM."""
        return self.groups * self.units

    def port_cycles(self, words: int) -> int:
        """Cycles that the ports of all groups' buffers need for so many words."""
        return -(-words // (self.groups * self.port_words)) if self.port_words else 0

    def resized(self, **sizes: int | float) -> Machine:
        """The machine with other numbers; where they are rows or cols, its modes grow along."""
        rows, cols = int(sizes.get("rows", self.rows)), int(sizes.get("cols", self.cols))
        modes = tuple(
            replace(
                m, rows=max(1, m.rows * rows // self.rows), cols=max(1, m.cols * cols // self.cols)
            )
            for m in self.modes
        )
        return replace(self, modes=modes, **sizes)

    @cached_property
    def as_one(self) -> Machine:
        """One array that takes as long as all: the others' are sub-waves, or columns of its own.

        Good enough to choose what goes into the buffer; no program runs on it.
        """
        if self.arrays == 1:
            return self
        ways = [s for s in splits(self.arrays) if s[2] == 1]
        modes = [spread(m, s) for m in self.array_modes for s in ways if m.dataflow != "pair"]
        wide = {"cols": self.cols * self.arrays, "acc_rows": self.acc_rows * self.arrays}
        flat = tuple(replace(mode, split=(1, 1, 1)) for mode in modes)
        return replace(self, groups=1, units=1, modes=flat, **wide)

    @property
    def turning_mode(self) -> Mode | None:
        """The mode in which PEs take turns with both gradients; none for arrays in step."""
        modes = self.modes if self.arrays == 1 else ()
        return next((mode for mode in modes if mode.dataflow == "pair"), None)

    @property
    def array_modes(self) -> tuple[Mode, ...]:
        """The modes of one array; the whole array, weight-stationary, where none are named."""
        return self.modes or (Mode("FW", self.rows, self.cols),)


_FOLDER = "ccnn.targets.machines"

_PLACES: dict[str, KeyPath] = {
    "name": ("name",),
    "description": ("description",),
    "clock_ghz": ("clock_ghz",),
    "cores": ("cores",),
    "barrier_cycles": ("barrier_cycles",),
    "rows": ("array", "rows"),
    "cols": ("array", "cols"),
    "groups": ("array", "groups"),
    "units": ("array", "units"),
    "modes": ("array", "modes"),
    "weight_buffers": ("array", "weight_buffers"),
    "lbuf_v_slots": ("array", "lbuf_v_slots"),
    "lbuf_h_rows": ("array", "lbuf_h_rows"),
    "lbuf_h_slots": ("array", "lbuf_h_slots"),
    "acc_rows": ("array", "acc_rows"),
    "acc_slots": ("array", "acc_slots"),
    "gbuf_bytes": ("gbuf", "size_bytes"),
    "port_words": ("gbuf", "port_words"),
    "lanes": ("vector", "lanes"),
    "vector_startup_cycles": ("vector", "startup_cycles"),
    "dram_bandwidth_gib_s": ("dram", "bandwidth_gib_s"),
    "dram_latency_cycles": ("dram", "latency_cycles"),
    "dram_bytes": ("dram", "size_bytes"),
}
"""Field of Machine: key in the file."""


def shipped_machines() -> tuple[str, ...]:
    """Names of the machines that come with ccnn, sorted."""
    names = (item.name for item in files(_FOLDER).iterdir())
    return tuple(sorted(name[: -len(".yaml")] for name in names if name.endswith(".yaml")))


@lru_cache(maxsize=1)
def _schema() -> dict[str, Any]:
    return json.loads(files(_FOLDER).joinpath("machine.schema.json").read_text("utf-8"))


def load_machine(name_or_path: str | Path) -> Machine:
    """A shipped machine or a plug-in's by name, or a YAML file's; MachineError names the line."""
    document = _inherited(_find(str(name_or_path), Path(), "asked for"))
    validator = jsonschema.Draft202012Validator(_schema())
    errors = sorted(validator.iter_errors(document.values), key=_gravity)
    if errors:
        raise _explain(errors[0], document)
    values: dict[str, Any] = {}
    for field, (*outer, last) in _PLACES.items():
        section = document.values
        for key in outer:
            section = section[key]
        if last in section:
            values[field] = section[last]
    values["modes"] = read_modes(values.get("modes", {}))
    for field in ("clock_ghz", "dram_bandwidth_gib_s"):
        values[field] = float(values[field])
    table = document.values["energy"]
    rows = tuple(EnergyRow(a, float(row["pj"]), row["source"]) for a, row in sorted(table.items()))
    return Machine(energy=rows, **values)


def machine_text(name_or_path: str | Path) -> str:
    """A machine as one YAML file that inherits nothing; MachineError as for `load_machine`."""
    values = dict(_inherited(_find(str(name_or_path), Path(), "asked for")).values)
    values.pop("inherits", None)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


def _find(text: str, folder: Path, where: str) -> Document:
    """Read the file a name or path stands for; `folder` is where a relative path starts."""
    if text.endswith((".yaml", ".yml")) or "/" in text or "\\" in text:
        path = folder / text
        try:
            with path.open("rb") as stream:
                return read_document(stream.read(_LARGEST + 1), str(path), _LARGEST)
        except OSError as error:
            raise MachineError(
                f"machine file {path} ({where}) cannot be read: {error.strerror}; "
                "give a readable YAML file, or the name of a shipped machine: "
                + ", ".join(shipped_machines())
            ) from error
    names = shipped_machines()
    if text in names:
        data = files(_FOLDER).joinpath(f"{text}.yaml").read_bytes()
        return read_document(data, f"{text}.yaml", _LARGEST)
    elsewhere = plugin_machine(text)
    if elsewhere is not None:
        return read_document(elsewhere, f"{text}.yaml", _LARGEST)
    others = plugin_machines()
    close = get_close_matches(text, (*names, *others), 1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise MachineError(
        f"no machine is called '{text[:80]}' ({where}); {hint}"
        f"shipped machines: {', '.join(names)}; "
        + (f"of plug-ins: {', '.join(others)}; " if others else "")
        + "a file of your own ends in .yaml"
    )


_LARGEST = 65536
"""Bytes a machine file may have: ten times the largest sensible one."""


def _inherited(document: Document) -> Document:
    """The document with everything it inherits filled in below it."""
    chain = [document]
    seen = {document.file}
    while "inherits" in chain[-1].values:
        child = chain[-1]
        parent_name = child.values["inherits"]
        if not isinstance(parent_name, str):
            raise child.error(("inherits",), "must be the name or the path of a machine")
        parent = _find(parent_name, Path(child.file).parent, f"inherited {child.at(('inherits',))}")
        if parent.file in seen:
            names = " -> ".join([d.file for d in chain] + [parent.file])
            raise child.error(
                ("inherits",), f"goes round in a circle: {names}; remove one of these"
            )
        if len(chain) == 8:
            raise child.error(("inherits",), "is the eighth in a row; flatten some of the files")
        seen.add(parent.file)
        chain.append(parent)
    merged = chain[-1]
    for child in reversed(chain[:-1]):
        merged = child.over(merged)
    return merged


def _gravity(error: jsonschema.ValidationError) -> tuple[int, list[str]]:
    """Unknown keys first: a misspelt key is also a missing one, and the better message."""
    order = ("additionalProperties", "type")
    rank = order.index(error.validator) if error.validator in order else len(order)
    return rank, [str(key) for key in error.absolute_path]


def _explain(error: jsonschema.ValidationError, document: Document) -> MachineError:
    """The schema's complaint in our words, at the line that causes it."""
    path: KeyPath = tuple(str(key) for key in error.absolute_path)
    schema: dict[str, Any] = error.schema if isinstance(error.schema, dict) else {}
    limit, instance = error.validator_value, cast(Any, error.instance)
    match error.validator:
        case "additionalProperties":
            known = schema["properties"]
            key = next(k for k in instance if k not in known)
            close = get_close_matches(key, known, 1)
            hint = (
                f"did you mean {close[0]}?" if close else f"known keys: {', '.join(sorted(known))}"
            )
            return document.error((*path, key), f"is not a key of a machine; {hint}")
        case "required":
            key = next(k for k in schema["required"] if k not in instance)
            return document.error(
                path, f"lacks the key {key}; add it, or inherit from a machine that has it"
            )
        case "type":
            words = {"integer": "a whole number", "number": "a number", "string": "text"}
            wanted = words.get(str(limit), "a section with keys of its own")
            hint = ""
            if isinstance(instance, str) and limit in ("integer", "number"):
                hint = "; write digits without unit or quotes, and 1.0e+9 rather than 1e9"
            return document.error(path, f"must be {wanted}, not {_short(instance)}{hint}")
        case "minimum":
            return document.error(path, f"is {_short(instance)}; the smallest value is {limit}")
        case "maximum":
            return document.error(path, f"is {_short(instance)}; the largest value is {limit}")
        case "const":
            return document.error(path, f"is {_short(instance)}; only {limit} is supported")
        case "enum":
            return document.error(
                path, f"is {_short(instance)}; use one of {', '.join(schema['enum'])}"
            )
        case "pattern":
            return document.error(path, f"is {_short(instance)}; use letters, digits, . _ -")
    return document.error(path, f"is too short or too long: {_short(instance)}")


def _short(value: object) -> str:
    words = {"None": "nothing", "True": "yes", "False": "no"}
    text = "a section" if isinstance(value, dict) else words.get(repr(value), repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _size(count: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale and count % scale == 0:
            return f"{count // scale} {unit}"
    return f"{count} bytes"


def _shared(machine: Machine) -> str:
    """How groups and their arrays share the global buffer."""
    parts = "" if machine.groups == 1 else f" in {machine.groups} parts"
    words = f", {machine.port_words} words a cycle to each feed" if machine.port_words else ""
    return parts + words + (" of a group" if words and machine.groups > 1 else "")


def describe(machine: Machine) -> str:
    """The machine in about twenty lines of text, each number with its unit."""
    m = machine
    weights = "double buffered weights" if m.weight_buffers == 2 else "one weight register"
    peak = 2 * m.cores * m.peak_macs_per_cycle * m.clock_ghz / 1000
    cores = "" if m.cores == 1 else f", {m.cores} cores; what follows is of each"
    several = "" if m.arrays == 1 else f", {m.groups} groups of {m.units}"
    lines = [
        f"{m.name}: {m.description}",
        f"  clock       {m.clock_ghz:g} GHz, peak {peak:.4g} TFLOPS{cores}",
        f"  array       {m.rows} x {m.cols} PEs, {weights}{several}",
        *describe_modes(m.modes),
        f"  lbuf_v      {m.lbuf_v_slots} slots of {m.rows} x {m.cols} words",
        f"  lbuf_h      {m.lbuf_h_slots} slots of {m.lbuf_h_rows} x {m.rows} words",
        f"  acc         {m.acc_slots} slots of {m.acc_rows} x {m.cols} words",
        f"  gbuf        {_size(m.gbuf_bytes)}{_shared(m)}",
        f"  vector      {m.lanes} lanes, {m.vector_startup_cycles} cycles to start",
        f"  dram        {_size(m.dram_bytes)}, {m.dram_bandwidth_gib_s:g} GiB/s"
        f" = {float(m.bytes_per_cycle):.4g} bytes/cycle, latency {m.dram_latency_cycles} cycles",
        f"  barrier     {m.barrier_cycles} cycles",
        f"  fingerprint {m.fingerprint}",
        "  energy      pJ  source",
    ]
    lines += [f"    {r.action:<12} {r.pj:g}  {r.source}" for r in m.energy]
    return "\n".join(lines) + "\n"
