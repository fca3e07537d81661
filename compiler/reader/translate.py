"""Node by node from ONNX to the graph; refusals are collected, and the next node is tried."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches

import numpy as np

from ccnn.compiler.reader.chance import CHANCE, expected
from ccnn.compiler.reader.context import Broken, Context, Known, Live, Many, Value
from ccnn.compiler.reader.einsum import EINSUM
from ccnn.compiler.reader.elementwise import ELEMENTWISE, Translate
from ccnn.compiler.reader.fold import FOLDS, check_size, fold
from ccnn.compiler.reader.load import SELECTS, Source
from ccnn.compiler.reader.loss import LOSSES
from ccnn.compiler.reader.movement import MOVEMENT
from ccnn.compiler.reader.norms import NORMS
from ccnn.compiler.reader.onnx_node import Branch, OnnxNode
from ccnn.compiler.reader.places import PLACES
from ccnn.compiler.reader.problems import Refusal
from ccnn.compiler.reader.resize import RESIZE
from ccnn.compiler.reader.sequences import SEQUENCES
from ccnn.compiler.reader.tensors import element_count, to_array
from ccnn.compiler.reader.weights import Draw
from ccnn.compiler.reader.windows import WINDOWS
from ccnn.passes.graph import GraphError

TRANSLATIONS: dict[str, Translate] = {
    **ELEMENTWISE, **WINDOWS, **NORMS, **MOVEMENT, **SEQUENCES, **RESIZE, **LOSSES, **CHANCE,
    **PLACES, **EINSUM,
}  # fmt: skip
"""What reads each ONNX operator; `fold.FOLDS` are those understood between constants."""

_BAD_INPUT = (
    GraphError, ValueError, TypeError, IndexError, KeyError, ArithmeticError, MemoryError,
)  # fmt: skip
"""What numpy and the ops raise for operands that make no sense; a file may hold any."""

SHAPE_SLOTS: dict[str, tuple[int, ...]] = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "Slice": (1, 2, 3, 4), "Pad": (1, 2, 3),
    "Resize": (1, 2, 3), "Upsample": (1,), "Gather": (1,), "Squeeze": (1,), "Unsqueeze": (1,),
    "Split": (1,), "ConstantOfShape": (0,), "Range": (0, 1, 2), "Clip": (1, 2),
    "GatherND": (1,), "GatherElements": (1,), "ScatterND": (1,), "ScatterElements": (1,),
    "CumSum": (1,), "Trilu": (1,), "ReduceLogSum": (1,), "ReduceLogSumExp": (1,),
    "Dropout": (1, 2), "SequenceAt": (1,), "SplitToSequence": (1,),
    "ReduceMean": (1,), "ReduceSum": (1,), "ReduceMax": (1,), "ReduceMin": (1,),
}  # fmt: skip
"""Operator: positions of inputs that are shapes, indices or bounds, not data."""

_CUT = "onnx.utils.extract_model('IN.onnx', 'OUT.onnx', [INPUTS], [NEW OUTPUTS])"

_REASONS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("If", "Loop", "Scan"),
        ("control flow cannot be scheduled ahead of time",
         "export a traced model (torch.jit.trace, or torch.onnx.export of a module whose "
         "forward does not branch on data)"),
    ),
    **dict.fromkeys(
        ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
         "MatMulInteger", "DynamicQuantizeLinear"),
        ("quantised models cannot be trained",
         "export the float model: what went into onnxruntime's quantize_static, or the torch "
         "model before convert"),
    ),
    **dict.fromkeys(
        ("LSTM", "GRU", "RNN"), ("recurrent networks are not supported", "ccnn compiles CNNs")
    ),
    **dict.fromkeys(
        SELECTS,
        ("it selects by data, which has no fixed schedule",
         "cut the model before its post-processing: " + _CUT),
    ),
    "Multinomial": ("it draws by data", "export without the random layer"),
}  # fmt: skip


def translate(c: Context) -> tuple[int, int]:
    """Translate all nodes of the source; gives how many were folded and how many translated."""
    arithmetic = shape_arithmetic(c.source)
    folded = sum(_translate_node(c, node, arithmetic) for node in c.source.nodes)
    return folded, len(c.source.nodes) - folded


def _translate_node(c: Context, node: OnnxNode, arithmetic: Collection[str]) -> bool:
    """Translate one node or refuse it; True when it was folded."""
    c.node = node
    values = [_input(c, name) for name in node.inputs]
    if any(isinstance(v, Broken) for v in values):
        # Nothing is known of its operands, but an operator of no use is so with any.
        if _is_known(node):
            c.env.update({o: Broken() for o in node.outputs if o})
        else:
            refusal = _unknown(node)
            _refuse(c, refusal.why, refusal.fix)
        return False
    done = None
    try:
        done = expected(node, values) or _fold(c, values, node.output(0) in arithmetic)
        results = done if done is not None else _translate(c)
        _assign(c, results)
    except Refusal as refusal:
        _refuse(c, refusal.why, refusal.fix)
    except _BAD_INPUT as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        text = re.sub(r"^node '[^']*' \(\w+\): ", "", text)
        _refuse(c, f"its inputs do not fit: {text}", _shapes_text(c))
    return done is not None


def _if(c: Context) -> list[Value]:
    """The branch that a condition known beforehand chooses, as if it stood in the If's place."""
    node, condition = c.node, c.value(0)
    if isinstance(condition, Live):
        raise Refusal(*_REASONS["If"])
    branch = node.attrs.get("then_branch" if np.any(condition.array) else "else_branch")
    if not isinstance(branch, Branch) or len(branch.outputs) != len(node.outputs):
        raise Refusal("its branch is missing or gives something else", "export the model again")
    for name, tensor in branch.initializers.items():
        c.env[name] = Known(to_array(tensor, c.source.folder), name, "initializer")
    for inner in branch.nodes:
        _translate_node(c, inner, ())
    c.node = node
    results = [_input(c, name) for name in branch.outputs]
    return [v if v is not None else Broken() for v in results]


TRANSLATIONS["If"] = _if


def _refuse(c: Context, why: str, fix: str) -> None:
    c.findings.error(why, fix, node=c.node.name, op=c.node.op)
    c.env.update({o: Broken() for o in c.node.outputs if o})


def _shapes_text(c: Context) -> str:
    shapes = []
    for name in (i for i in c.node.inputs if i):
        value = c.env.get(name)
        if isinstance(value, Known):
            shapes.append(f"{name} {list(value.array.shape)}")
        elif isinstance(value, Live):
            shapes.append(f"{name} {list(c.builder.shape(value.tensor))}")
    return f"its operands: {', '.join(shapes[:5])}" if shapes else ""


def _input(c: Context, name: str) -> Value | None:
    """What an ONNX tensor has become; initializers are decoded when first read."""
    if not name:
        return None
    if name not in c.env:
        try:
            array = to_array(c.source.initializers[name], c.source.folder)
            kind = "computed" if name in c.source.buffers else "initializer"
            c.env[name] = Known(array, name, kind)
        except Refusal as refusal:
            c.findings.error(refusal.why, refusal.fix, where=f"initializer '{name}'")
            c.env[name] = Broken()
        except (ValueError, TypeError, OSError, MemoryError) as error:
            c.findings.error(f"it cannot be decoded ({error})", where=f"initializer '{name}'")
            c.env[name] = Broken()
    return c.env[name]


def shape_arithmetic(source: Source) -> set[str]:
    """Tensors that only ever end in a shape, an index or a bound: their initializers are numbers
    to compute with, not parameters."""
    uses: dict[str, list[tuple[OnnxNode, int]]] = {}
    for node in source.nodes:
        for position, name in enumerate(node.inputs):
            uses.setdefault(name, []).append((node, position))
    found: set[str] = set()
    outputs = set(source.outputs)
    for node in reversed(source.nodes):
        places = [u for o in node.outputs if o for u in uses.get(o, ())]
        if places and not outputs & set(node.outputs) and all(
            position in SHAPE_SLOTS.get(user.op, ()) or user.output(0) in found
            for user, position in places
        ):  # fmt: skip
            found.update(o for o in node.outputs if o)
    return found


_SIZES = ("Shape", "Size")
_MOVES = ("Identity", "Cast", "CastLike", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Flatten")


def _fold(c: Context, values: list[Value | None], arithmetic: bool) -> list[Known] | None:
    """The node's results when they are known now, else None."""
    node = c.node
    if node.domain or (node.op not in FOLDS and node.op not in _SIZES):
        return None
    if node.op in _SIZES:
        return [_shape(c)]
    known = [v for v in values if isinstance(v, Known)]
    if len(known) != sum(v is not None for v in values):
        return None
    if not arithmetic and any(v.kind == "initializer" and v.is_float for v in known):
        return None
    if c.draws_for.get(node.output(0)):
        return [_stripped(c, known[0].array)]
    kind = "computed"
    if node.op == "Constant" or (node.op in _MOVES and known and known[0].kind == "stored"):
        kind = "stored"
    arrays = fold(node, [v.array if isinstance(v, Known) else None for v in values])
    for array in arrays:
        check_size(array.shape)
    return [Known(a, n, kind) for a, n in zip(arrays, node.outputs, strict=False)]


def _stripped(c: Context, shape: np.ndarray) -> Known:
    """A weight that the file gives only the shape of; its values are drawn at the end."""
    name = c.node.output(0)
    dims = tuple(int(d) for d in shape.reshape(-1))
    if element_count(dims) > 1 << 30:
        raise Refusal(f"it would make up a weight of {list(dims)}", "the file is damaged")
    if any(d < 1 for d in dims):
        raise Refusal(f"it would make up a weight of {list(dims)}", "the file is damaged")
    return Known(np.broadcast_to(np.float32(0), dims), name, "initializer", c.draws_for[name])


def _shape(c: Context) -> Known:
    shape = np.asarray(c.shape(0), np.int64)
    name = c.node.output(0)
    if c.node.op == "Size":
        return Known(np.asarray(np.prod(shape), np.int64), name)
    start, end = c.node.int("start", 0), c.node.int("end", 1 << 31)
    return Known(shape[slice(start, end)], name)


def _translate(c: Context) -> Value | Sequence[Value]:
    node = c.node
    if node.domain or node.op not in TRANSLATIONS:
        raise _unknown(node)
    return TRANSLATIONS[node.op](c)


def _is_known(node: OnnxNode) -> bool:
    return not node.domain and (node.op in TRANSLATIONS or node.op in FOLDS or node.op in _SIZES)


def _unknown(node: OnnxNode) -> Refusal:
    if node.op in _REASONS:
        return Refusal(*_REASONS[node.op])
    if node.domain:
        return Refusal(
            f"operators of the domain '{node.domain}' are not supported",
            "export the plain ONNX model (before any runtime's own graph optimisation)",
        )
    close = get_close_matches(node.op, TRANSLATIONS, 2)
    hint = f" (supported operators like it: {', '.join(close)})" if close else ""
    return Refusal(
        f"the operator {node.op} is not supported{hint}",
        "replace the layer, or cut the model before it: " + _CUT,
    )


def _assign(c: Context, results: Value | Sequence[Value]) -> None:
    values = results if isinstance(results, Sequence) else [results]
    for k, name in enumerate(c.node.outputs):
        if not name:
            continue
        if k < len(values):
            c.env[name] = values[k]
        elif name in c.read or name in c.source.outputs:
            c.env[name] = Broken()
            raise Refusal(f"its output {k} ('{name}') is used, but not supported")


def graph_outputs(c: Context) -> list[str]:
    """The graph tensors of the model's outputs; refuses outputs that do not depend on an input."""
    found = []
    for name in c.source.outputs:
        value = _input(c, name)
        if isinstance(value, Live):
            found.append(value.tensor)
        elif isinstance(value, Many):
            c.findings.error("it is a sequence of tensors", "export a model that returns tensors",
                             where=f"output '{name}'")  # fmt: skip
        elif isinstance(value, Known):
            c.findings.error("it does not depend on any input", "the model is folded or damaged",
                             where=f"output '{name}'")  # fmt: skip
    return list(dict.fromkeys(found))


def needed_draws(c: Context) -> dict[str, Draw]:
    """Declared parameters and state whose values the file does not hold."""
    return {k: v for k, v in c.draws.items() if k in c.builder.tensors}
