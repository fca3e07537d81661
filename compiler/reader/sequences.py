"""ONNX sequences: lists of tensors that exist only while the model is read."""

from __future__ import annotations

from ccnn.compiler.reader.context import Context, Known, Live, Many
from ccnn.compiler.reader.elementwise import Translate
from ccnn.compiler.reader.movement import cut
from ccnn.compiler.reader.norms import axis_of
from ccnn.compiler.reader.problems import Refusal


def _split_to_sequence(c: Context) -> Many:
    shape = c.shape(0)
    axis = axis_of(c, c.node.int("axis", 0), len(shape))
    keep = bool(c.node.int("keepdims", 1)) or c.node.has(1)
    sizes = (1,) * shape[axis]
    if c.node.has(1):
        sizes = c.ints(1)
        if c.known(1).ndim == 0:
            each = sizes[0]
            if each < 1:
                raise Refusal(f"it cuts into pieces of {each}")
            sizes = tuple(min(each, shape[axis] - s) for s in range(0, shape[axis], each))
    if sum(sizes) != shape[axis] or any(s < 1 for s in sizes) or len(sizes) > 4096:
        raise Refusal(f"it cuts axis {axis} of {list(shape)} into {list(sizes)[:9]}")
    items, start, x = [], 0, c.tensor(0)
    for size in sizes:
        piece = cut(c, x, axis, start, size)
        if not keep:
            piece = c.emit("reshape", piece, shape=(*shape[:axis], *shape[axis + 1 :]))
        items.append(Live(piece))
        start += size
    return Many(tuple(items))


def _sequence(c: Context) -> Many:
    value = c.env[c.node.inputs[0]] if c.node.has(0) else None
    if not isinstance(value, Many):
        raise Refusal("its input is a tensor, not a sequence")
    return value


def _sequence_at(c: Context) -> Known | Live:
    items, place = _sequence(c).items, int(c.scalar(1))
    if not -len(items) <= place < len(items):
        raise Refusal(f"position {place} is outside the sequence of {len(items)}")
    return items[place]


def _concat_from_sequence(c: Context) -> Known | Live:
    parts = [c.tensor_of(v) for v in _sequence(c).items]
    axis = c.node.int("axis")
    rank = len(c.builder.shape(parts[0])) if parts else 0
    new = bool(c.node.int("new_axis", 0))
    if not parts or not -rank - new <= axis < rank + new:
        raise Refusal(f"axis {axis} does not fit its sequence")
    axis %= rank + new
    if new:
        shape = c.builder.shape(parts[0])
        parts = [c.emit("reshape", p, shape=(*shape[:axis], 1, *shape[axis:])) for p in parts]
    return c.final("concat", *parts, axis=axis) if len(parts) > 1 else Live(parts[0])


SEQUENCES: dict[str, Translate] = {
    "SplitToSequence": _split_to_sequence,
    "SequenceConstruct": lambda c: Many(tuple(c.value(k) for k in range(len(c.node.inputs)))),
    "SequenceAt": _sequence_at,
    "ConcatFromSequence": _concat_from_sequence,
}
