"""Graphs as text: one line a tensor, one line a node; `parse_graph(print_graph(g)) == g`.

    graph tiny
    input %x: float[1, 4]
    parameter %w: float[4]
    constant %two: float[] = [2.0]
    %y: float[1, 4] = mul(%x, %w)  # mul_1 from "/Mul" forward
    output %y
    gradient %w = %dw
    update %w = %w2
    group [mul_1, add_2] sub_batch 4 resident [%y] kept [%w] left 2 [%y]
    group [relu_3] sub_batch 4 backwards resident [%z] kept [] found 2 [%y]

An absent input is written `_`, attributes stand in braces as Python literals.  Names with
unusual characters stand in quotes.  Values of constants with at most 16 elements are written;
larger data has to be given again.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from ccnn.passes.graph import DTYPES, Graph, GraphError, Group, Node, Phase, Role, Tensor

MOST_PRINTED = 16
_PLAIN = re.compile(r"[A-Za-z0-9_./\-]+(:+[A-Za-z0-9_./\-]+)*")
_NUMPY = {"index": np.int32, "bytes": np.uint8}


def print_graph(graph: Graph) -> str:
    """The graph as text, ending in a newline."""
    lines = [f"graph {_quoted(graph.name)}"]
    for tensor in graph.of_role("input", "parameter", "state", "constant"):
        lines.append(_declaration(tensor, graph.data.get(tensor.name)))
    lines += [_node(node, graph) for node in graph.nodes]
    lines += [f"output {_ref(name)}" for name in graph.outputs]
    lines += [f"gradient {_ref(k)} = {_ref(v)}" for k, v in graph.gradients.items()]
    lines += [f"update {_ref(k)} = {_ref(v)}" for k, v in graph.updates.items()]
    lines += [_group(group) for group in graph.groups]
    return "\n".join(lines) + "\n"


def _quoted(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else json.dumps(name)


def _ref(name: str) -> str:
    return f"%{_quoted(name)}" if name else "_"


def _typed(tensor: Tensor) -> str:
    return f"{_ref(tensor.name)}: {tensor.dtype}[{', '.join(map(str, tensor.shape))}]"


def _declaration(tensor: Tensor, data: np.ndarray | None) -> str:
    text = f"{tensor.role} {_typed(tensor)}"
    if tensor.role != "constant" or data is None or tensor.size > MOST_PRINTED:
        return text
    return f"{text} = [{', '.join(_number(v) for v in np.asarray(data).reshape(-1).tolist())}]"


def _number(value: float) -> str:
    return repr(int(value) if isinstance(value, bool) else value)


def _literal(value: Any) -> str:
    if isinstance(value, tuple):
        inner = ", ".join(_literal(v) for v in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, float):
        return _number(value)
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _node(node: Node, graph: Graph) -> str:
    results = ", ".join(_typed(graph[o]) if o else "_" for o in node.outputs)
    attrs = ", ".join(f"{k}={_literal(v)}" for k, v in node.attrs)
    call = f"{node.op}({', '.join(_ref(i) for i in node.inputs)})"
    origin = f" from {_quoted(node.origin)}" if node.origin else ""
    body = f"{call} {{{attrs}}}" if attrs else call
    return f"{results} = {body}  # {_quoted(node.name)}{origin} {node.phase}"


def _group(group: Group) -> str:
    nodes = ", ".join(map(_quoted, group.nodes))
    resident, kept = (", ".join(map(_ref, names)) for names in (group.resident, group.kept))
    size = f"sub_batch {group.sub_batch}" + (f" rows {group.rows}" if group.rows else "")
    size += " carried" if group.carried else ""
    size += " interleaved" if group.interleaved else ""
    size += " halves" if group.halves else ""
    size += " ahead" if group.ahead else ""
    size += " backwards" if group.backwards else ""
    line = f"group [{nodes}] {size} resident [{resident}] kept [{kept}]"
    for word, samples, names in (
        ("found", group.found_samples, group.found),
        ("left", group.left_samples, group.left),
    ):
        line += f" {word} {samples} [{', '.join(map(_ref, names))}]" if names else ""
    return line


@dataclass
class _Reader:
    """One line of text and how far it has been read."""

    line: str
    number: int
    at: int = 0

    def fail(self, why: str) -> GraphError:
        rest = self.line[self.at :].strip()
        where = f" at '{rest[:30]}'" if rest else " at the end of the line"
        return GraphError(f"line {self.number}: {why}{where}\n    {self.line.strip()}")

    def skip(self) -> None:
        while self.at < len(self.line) and self.line[self.at] == " ":
            self.at += 1

    def accept(self, text: str) -> bool:
        self.skip()
        if not self.line.startswith(text, self.at):
            return False
        self.at += len(text)
        return True

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise self.fail(f"'{text}' should stand here")

    def word(self, what: str) -> str:
        """A plain or quoted name."""
        self.skip()
        if self.line.startswith('"', self.at):
            try:
                value, end = json.JSONDecoder().raw_decode(self.line, self.at)
            except ValueError as error:
                raise self.fail(f"{what} has no closing quote") from error
            self.at = end
            return value
        match = _PLAIN.match(self.line, self.at)
        if not match:
            raise self.fail(f"{what} should stand here")
        self.at = match.end()
        return match.group()

    def ref(self) -> str:
        """A tensor name after %, or '' for _."""
        if self.accept("%"):
            return self.word("a tensor name")
        self.expect("_")
        return ""

    def typed(self) -> tuple[str, str, tuple[int, ...]] | None:
        """Name, dtype and shape of a tensor; None for _."""
        name = self.ref()
        if not name:
            return None
        self.expect(":")
        dtype = self.word("a dtype")
        if dtype not in DTYPES:
            raise self.fail(f"dtype '{dtype}' is none of {', '.join(DTYPES)}")
        inner = self.bracketed("[", "]")
        try:
            shape = tuple(int(d) for d in inner.split(",")) if inner.strip() else ()
        except ValueError as error:
            raise self.fail(f"[{inner}] is no shape") from error
        if any(d < 0 for d in shape):
            raise self.fail(f"[{inner}] has a negative size")
        return name, dtype, shape

    def bracketed(self, opening: str, closing: str) -> str:
        """The text between two brackets, strings within respected."""
        self.expect(opening)
        start, quoted = self.at, False
        while self.at < len(self.line):
            c = self.line[self.at]
            if c == "\\" and quoted:
                self.at += 1
            elif c == '"':
                quoted = not quoted
            elif c == closing and not quoted:
                self.at += 1
                return self.line[start : self.at - 1]
            self.at += 1
        raise self.fail(f"'{closing}' is missing")


def parse_graph(text: str, data: Mapping[str, np.ndarray] | None = None) -> Graph:
    """The graph a text describes; raises GraphError with the line that cannot be read.

    `data` holds values of parameters, state and constants that the text does not carry.
    """
    graph = _Parts()
    for reader in _lines(text):
        _statement(reader, graph)
        reader.skip()
        if reader.at < len(reader.line):
            raise reader.fail("nothing more should stand here")
    if graph.name is None:
        raise GraphError("line 1: the text does not start with 'graph NAME'")
    values = {**graph.data, **(data or {})}
    return Graph(
        graph.name,
        tuple(graph.nodes),
        graph.tensors,
        tuple(graph.outputs),
        graph.gradients,
        graph.updates,
        {k: v for k, v in values.items() if k in graph.tensors},
        tuple(graph.groups),
    )


class _Parts:
    """What was read so far."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {}
        self.outputs: list[str] = []
        self.gradients: dict[str, str] = {}
        self.updates: dict[str, str] = {}
        self.data: dict[str, np.ndarray] = {}
        self.groups: list[Group] = []

    def add(self, reader: _Reader, facts: tuple[str, str, tuple[int, ...]], role: Role) -> Tensor:
        name, dtype, shape = facts
        if name in self.tensors:
            raise reader.fail(f"tensor '{name}' is declared twice")
        self.tensors[name] = Tensor(name, shape, dtype, role)
        return self.tensors[name]

    def known(self, reader: _Reader, name: str) -> str:
        if name and name not in self.tensors:
            raise reader.fail(f"tensor '{name}' is not defined before this line")
        return name


def _lines(text: str) -> Iterator[_Reader]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("//"):
            yield _Reader(line.rstrip(), number)


def _statement(reader: _Reader, graph: _Parts) -> None:
    if graph.name is None:
        reader.expect("graph ")
        graph.name = reader.word("the graph's name")
    elif reader.line.lstrip().startswith(("%", "_")):
        _read_node(reader, graph)
    else:
        word = reader.word("a statement")
        if word in ("input", "parameter", "state", "constant"):
            _read_declaration(reader, graph, word)
        elif word == "output":
            graph.outputs.append(graph.known(reader, reader.ref()))
        elif word in ("gradient", "update"):
            table = graph.gradients if word == "gradient" else graph.updates
            of = graph.known(reader, reader.ref())
            reader.expect("=")
            table[of] = graph.known(reader, reader.ref())
        elif word == "group":
            graph.groups.append(_read_group(reader, graph))
        else:
            raise reader.fail(f"'{word}' begins no statement")


def _read_declaration(reader: _Reader, graph: _Parts, role: Role) -> None:
    facts = reader.typed()
    if facts is None:
        raise reader.fail("a declared tensor needs a name")
    tensor = graph.add(reader, facts, role)
    if not reader.accept("="):
        return
    inner = reader.bracketed("[", "]")
    try:
        values = [float(v) for v in inner.split(",")] if inner.strip() else []
    except ValueError as error:
        raise reader.fail(f"[{inner}] are no numbers") from error
    if len(values) != tensor.size:
        raise reader.fail(f"{len(values)} values for a tensor of {tensor.size} elements")
    array = np.array(values).astype(_NUMPY.get(tensor.dtype, np.float64))
    graph.data[tensor.name] = array.reshape(tensor.shape)


def _read_node(reader: _Reader, graph: _Parts) -> None:
    results = [reader.typed()]
    while reader.accept(","):
        results.append(reader.typed())
    reader.expect("=")
    op = reader.word("an op")
    reader.expect("(")
    inputs: list[str] = []
    while not reader.accept(")"):
        if inputs:
            reader.expect(",")
        inputs.append(graph.known(reader, reader.ref()))
    attrs = _read_attrs(reader, reader.bracketed("{", "}")) if _peek(reader, "{") else ()
    reader.expect("#")
    name, origin = reader.word("the node's name"), ""
    if reader.accept("from "):
        origin = reader.word("the origin")
    word = reader.word("the phase")
    phase: Phase | None = next((p for p in get_args(Phase) if p == word), None)
    if phase is None:
        raise reader.fail(f"phase '{word}' is none of {', '.join(get_args(Phase))}")
    outputs = tuple(graph.add(reader, r, "value").name if r else "" for r in results)
    graph.nodes.append(Node(name, op, tuple(inputs), outputs, attrs, origin, phase))


def _read_group(reader: _Reader, graph: _Parts) -> Group:
    nodes = _list(reader, lambda: reader.word("a node's name"))
    reader.expect("sub_batch ")
    count, rows = _count(reader, "samples"), 0
    if reader.accept("rows "):
        rows = _count(reader, "rows")
    carried = reader.accept("carried ")
    interleaved = reader.accept("interleaved ")
    halves = reader.accept("halves ")
    ahead = reader.accept("ahead ")
    backwards = reader.accept("backwards ")
    tensors = []
    for what in ("resident ", "kept "):
        reader.expect(what)
        tensors.append(_list(reader, lambda: graph.known(reader, reader.ref())))
    handed: list[Any] = []
    for what in ("found ", "left "):
        there = reader.accept(what)
        samples = _count(reader, "samples") if there else 0
        names = _list(reader, lambda: graph.known(reader, reader.ref())) if there else ()
        handed += [names, samples]
    flags = rows, interleaved, carried, halves, ahead, backwards
    return Group(nodes, count, tensors[0], tensors[1], *flags, *handed)


def _count(reader: _Reader, what: str) -> int:
    count = reader.word(f"a number of {what}")
    if not count.isdecimal():
        raise reader.fail(f"'{count}' is no number of {what}")
    return int(count)


def _list(reader: _Reader, item: Callable[[], str]) -> tuple[str, ...]:
    reader.expect("[")
    items: list[str] = []
    while not reader.accept("]"):
        if items:
            reader.expect(",")
        items.append(item())
    return tuple(items)


def _peek(reader: _Reader, text: str) -> bool:
    reader.skip()
    return reader.line.startswith(text, reader.at)


def _read_attrs(reader: _Reader, inner: str) -> tuple[tuple[str, Any], ...]:
    try:
        call = ast.parse(f"f({inner})", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise reader.fail(f"{{{inner}}} are no attributes") from error
    if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
        raise reader.fail(f"{{{inner}}} are no attributes")
    return tuple((str(k.arg), _value(reader, k.value)) for k in call.keywords)


def _value(reader: _Reader, tree: ast.expr) -> Any:
    match tree:
        case ast.Constant(value=str() as value):  # JSON writes rare characters as pairs
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.Tuple(elts=elements):
            return tuple(_value(reader, e) for e in elements)
        case ast.Name(id="inf"):
            return math.inf
        case ast.Name(id="nan"):
            return math.nan
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(reader, operand)
    raise reader.fail(f"'{ast.unparse(tree)}' is no attribute value")
