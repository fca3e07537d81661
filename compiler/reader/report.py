"""What a reading should tell its user beyond errors: suspicions about the export, decisions."""

from __future__ import annotations

import re

from onnx import TensorProto

from ccnn.compiler.reader.context import Context
from ccnn.compiler.reader.tensors import type_name

_KEEP_NORMS = (
    "export with torch.onnx.export(..., dynamo=False, do_constant_folding=False, "
    "training=torch.onnx.TrainingMode.PRESERVE), or dynamo=True with optimize=False"
)
_NORMS = ("BatchNormalization", "GroupNormalization", "InstanceNormalization",
          "LayerNormalization", "LRN")  # fmt: skip
FOLDED_NAME = re.compile(r"^onnx::Conv_\d+$|(^|[._/])(bn|norm|batchnorm)\d*([._/]|$)", re.I)
"""What convolutions are called that have a batch norm folded into them."""


def note_model(c: Context, outputs: list[str]) -> None:
    """Add warnings and notes about the whole model to the findings."""
    for name in outputs if c.old_batch is not None else ():
        if name not in c.batched:
            c.findings.error(
                f"with batch {c.batch} instead of the file's {c.old_batch} it could not be shown "
                "that the samples stay apart",
                "export with a symbolic batch: dynamic_axes={'input': {0: 'N'}}",
                where=f"output '{name}'",
            )
    _folded_norms(c)
    _shared_parameters(c)
    _converted_types(c)
    if c.counts.get("inference_norms"):
        c.findings.note(
            f"{c.counts['inference_norms']} BatchNormalization nodes are in inference form; the "
            "training step normalises with the batch's own statistics"
        )
    if c.counts.get("dropout"):
        c.findings.note(
            f"{c.counts['dropout']} Dropout nodes are left out (--dropout keeps them active)"
        )
    if c.counts.get("random"):
        c.findings.note(
            f"{c.counts['random']} random layers are left out: what they draw stands for its mean "
            "(--dropout keeps them active)"
        )
    kept = [name for name in c.source.initializers if name in c.source.buffers]
    kept = [name for name in kept if name not in c.builder.data]  # running statistics are state
    if kept:
        c.findings.note(
            f"{len(kept)} initializers are buffers, as the file says ('{kept[0]}'): constants"
        )
    if c.draws:
        c.findings.note(
            f"{len(c.draws)} weights are not in the file (ConstantOfShape); they are drawn with "
            f"seed {c.options.seed}"
        )


def _folded_norms(c: Context) -> None:
    told = [n for n in c.source.nodes if "BatchNorm" in n.rule]
    if told:
        count = "a node" if len(told) == 1 else f"{len(told)} nodes"
        c.findings.warning(
            f"BatchNormalization is folded into {count} ('{told[0].name}': {told[0].rule}): "
            "training then has no normalisation",
            _KEEP_NORMS,
        )
        return
    convs = [n for n in c.source.nodes if n.op == "Conv"]
    if len(convs) < 2 or any(n.op in _NORMS for n in c.source.nodes):
        return
    names = {*(n.name for n in c.source.nodes), *c.builder.data}
    hint = sorted(n for n in names if FOLDED_NAME.search(n))
    if hint and all(n.has(2) for n in convs):
        c.findings.warning(
            f"BatchNormalization seems to be folded into the convolutions (see '{hint[0]}'): "
            "training then has no normalisation",
            _KEEP_NORMS,
        )


def _shared_parameters(c: Context) -> None:
    shared = [k for k, users in c.uses.items() if len(users) > 1]
    if shared:
        some = ", ".join(f"'{s}'" for s in shared[:3]) + (" ..." if len(shared) > 3 else "")
        c.findings.note(
            f"{len(shared)} parameters are used by several nodes ({some}): each is one parameter "
            "with the sum of its gradients",
            "if the exporter merged equal tensors, export in training mode "
            "(training=torch.onnx.TrainingMode.PRESERVE)",
        )


def _converted_types(c: Context) -> None:
    for kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
        count = sum(t.data_type == kind for t in c.source.initializers.values())
        if count:
            c.findings.note(f"{count} initializers are {type_name(kind)}; they become float32")
