"""ONNX to Graph: the flow from file to checked training input, spelled once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from onnx import ModelProto, TensorProto

from ccnn.compiler.reader.context import Context, Live
from ccnn.compiler.reader.load import GraphInput, Source, load_source
from ccnn.compiler.reader.loss import add_loss, label_inputs
from ccnn.compiler.reader.onnx_node import Branch, OnnxNode
from ccnn.compiler.reader.options import ReadOptions, ReadResult
from ccnn.compiler.reader.problems import Findings, ReadError, ReadReport, Refusal
from ccnn.compiler.reader.report import note_model
from ccnn.compiler.reader.tensors import FLOATS, element_count, type_name
from ccnn.compiler.reader.translate import graph_outputs, needed_draws, translate
from ccnn.compiler.reader.weights import draw_weight, stripped_weights
from ccnn.passes.graph import Builder, GraphError

_INTEGERS = (
    TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8,
    TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64, TensorProto.BOOL,
)  # fmt: skip
MAX_BATCH = 1 << 20


def read_model(
    model: str | Path | bytes | ModelProto, options: ReadOptions | None = None
) -> ReadResult:
    """Read an ONNX model as a graph with a loss.

    Raises ReadError with everything that stands in the way, each with its node and a fix.
    """
    options = options or ReadOptions()
    findings = Findings()
    label = Path(model).name if isinstance(model, str | Path) else "the model"
    if options.batch is not None and not 1 <= options.batch <= MAX_BATCH:
        findings.error(f"a batch of {options.batch} is not possible", "choose 1 or more")
        raise ReadError(findings.problems, label)
    source = load_source(model, findings)
    c = Context(source, options, findings, Builder(source.name))
    c.reserved = {*_onnx_names(source), "loss", "target"}
    c.read = _names_read(source.nodes)
    c.draws_for = stripped_weights(source)
    _declare_inputs(c)
    findings.stop_if_failed(label)
    folded, _ = translate(c)
    outputs = graph_outputs(c)
    loss, target = _loss(c, outputs)
    note_model(c, outputs)
    findings.stop_if_failed(label)
    return _result(c, label, folded, outputs, loss, target)


def _names_read(nodes: Collection[OnnxNode]) -> set[str]:
    found = {i for n in nodes for i in n.inputs if i}
    for branch in (a for n in nodes for a in n.attrs.values() if isinstance(a, Branch)):
        found |= _names_read(branch.nodes) | {*branch.outputs}
    return found


def _onnx_names(source: Source) -> set[str]:
    names = {*source.initializers, *(i.name for i in source.inputs)}
    return names | {o for n in source.nodes for o in n.outputs if o}


def _loss(c: Context, outputs: list[str]) -> tuple[str, str]:
    if c.findings.failed or not outputs:
        return "", ""
    try:
        c.reserved -= {"loss", "target"} - _onnx_names(c.source)
        return add_loss(c, outputs)
    except Refusal as refusal:
        c.findings.error(refusal.why, refusal.fix, where="loss")
    except GraphError as error:
        c.findings.error(str(error), where="loss")
    return "", ""


def _declare_inputs(c: Context) -> None:
    labels = label_inputs(c.source)
    batch = _choose_batch(c)
    names = {i.dims[0] for i in c.source.inputs if i.dims and isinstance(i.dims[0], str)}
    for given in c.source.inputs:
        try:
            shape = _input_shape(c, given, batch, names)
            c.builder.input(given.name, shape, _input_type(c, given, given.name in labels))
            c.env[given.name] = Live(given.name)
            if shape and shape[0] == c.batch:
                c.batched.add(given.name)
        except Refusal as refusal:
            c.findings.error(refusal.why, refusal.fix, where=f"input '{given.name}'")
    if not c.source.inputs and not c.findings.failed:
        c.findings.error("it has no input that its output depends on", "export the model again")


def _choose_batch(c: Context) -> int:
    """The batch for symbolic leading axes; notes re-batching of a file with a fixed one."""
    fixed = [
        i.dims[0] for i in c.source.inputs
        if i.dims and len(i.dims) > 1 and isinstance(i.dims[0], int) and i.dims[0] > 0
    ]  # fmt: skip
    symbolic = any(i.dims and not _is_size(i.dims[0]) for i in c.source.inputs)
    wanted = c.options.batch
    if symbolic:
        if wanted is None and not fixed:
            c.findings.assume("batch: 1 (the model leaves it open; choose with --batch)")
        c.batch = wanted or (fixed[0] if fixed else 1)
    elif wanted is not None and fixed and fixed[0] != wanted:
        c.old_batch, c.batch = fixed[0], wanted
        c.findings.note(f"the file is made for batch {fixed[0]}; it is read with batch {wanted}")
    else:
        c.batch = fixed[0] if fixed else (wanted or 1)
    return c.batch


def _is_size(dim: int | str | None) -> bool:
    return isinstance(dim, int) and dim > 0


def _input_shape(
    c: Context, given: GraphInput, batch: int, batch_names: set[str]
) -> tuple[int, ...]:
    fix = (
        "export with fixed sizes, with no dynamic axes but the batch, or set them in the file: "
        "python -m onnxruntime.tools.make_dynamic_shape_fixed --dim_param NAME --dim_value SIZE "
        "IN.onnx OUT.onnx"
    )
    open_axes = [
        f"{axis} ({dim or 'unnamed'})"
        for axis, dim in enumerate(given.dims or ())
        if axis and not isinstance(dim, int) and dim not in batch_names
    ]
    if given.dims is None:
        raise Refusal("its shape is missing", fix)
    if len(given.dims) > 8:
        raise Refusal(f"it has {len(given.dims)} axes", fix)
    shape = []
    for axis, dim in enumerate(given.dims):
        if (
            (axis == 0 and not _is_size(dim) and (not isinstance(dim, int) or dim in (0, -1)))
            or (axis == 0 and dim == c.old_batch)
            or (isinstance(dim, str) and dim in batch_names)
        ):
            shape.append(batch)
        elif not isinstance(dim, int):
            axes = "axis" if len(open_axes) == 1 else "axes"
            have = "has" if len(open_axes) == 1 else "have"
            raise Refusal(f"{axes} {' and '.join(open_axes)} {have} no fixed size", fix)
        elif dim < 1:
            raise Refusal(f"axis {axis} has the size {dim}", fix)
        else:
            shape.append(dim)
    element_count(tuple(shape))
    return tuple(shape)


def _input_type(c: Context, given: GraphInput, is_label: bool) -> str:
    if is_label:
        return "index"
    if given.elem_type in _INTEGERS:
        c.findings.note(
            f"the input '{given.name}' holds {type_name(given.elem_type)}; it is fed as numbers"
        )
    elif given.elem_type not in FLOATS:
        raise Refusal(
            f"its element type {type_name(given.elem_type)} is not supported",
            "export a model that takes float32",
        )
    return "float"


def _result(
    c: Context, label: str, folded: int, outputs: list[str], loss: str, target: str
) -> ReadResult:
    source, b = c.source, c.builder
    for name, draw in needed_draws(c).items():
        b.data[name] = draw_weight(name, b.shape(name), draw, c.options.seed)
    outputs = [o for o in outputs if o != loss]
    graph = b.build((*outputs, loss))
    report = ReadReport(
        label, source.producer, source.ir_version, source.opset, source.total_nodes,
        source.total_nodes - len(source.nodes), folded,
        dict(sorted(Counter(n.op for n in source.nodes).items())),
        tuple(c.findings.assumed), tuple(c.findings.problems),
    )  # fmt: skip
    return ReadResult(
        graph, report, loss, target, tuple(i.name for i in source.inputs), tuple(outputs)
    )
