"""model.annotated.onnx: the model with what each node costs in its properties, for Netron.

Weights are left out (their shapes stay), so that the file is small whatever the model's size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import onnx

from ccnn.compiler.driver import Compilation
from ccnn.compiler.reader.onnx_node import name_of
from ccnn.compiler.report.fields import quantity

LARGEST_KEPT = 64
"""Elements of an initializer whose values are kept: shapes, axes and the like."""

LEFT_OUT = "weights-left-out"
"""Where the file says the left-out values are."""

_SHOWN = ("cycles", "macs", "energy_pj", "pe_utilisation")


def annotate_model(model: Path, compilation: Compilation, report: Mapping[str, Any]) -> bytes:
    """The model's bytes with `ccnn.PHASE.*` properties on every node that costs something."""
    proto = onnx.load(model, load_external_data=False)
    found = node_properties(compilation, report)
    for position, node in enumerate(proto.graph.node):
        for key, value in found.get(name_of(node, position), {}).items():
            node.metadata_props.add(key=key, value=value)
    totals = report["totals"]
    facts = {
        "ccnn.machine": report["machine"]["name"],
        "ccnn.batch": str(report["model"]["batch"]),
        "ccnn.cycles": str(totals["cycles"]),
        "ccnn.time": quantity("seconds", totals["seconds"]),
        "ccnn.energy": quantity("energy_pj", totals["energy_pj"]),
    }
    for key, value in facts.items():
        proto.metadata_props.add(key=key, value=value)
    for tensor in proto.graph.initializer:
        _leave_out(tensor)
    return proto.SerializeToString(deterministic=True)


def node_properties(
    compilation: Compilation, report: Mapping[str, Any]
) -> dict[str, dict[str, str]]:
    """ONNX node to its properties: figures by phase, and the tiles of its GEMMs."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for row in report["layers"]:
        own, phase = found[row["node"]], row["phase"]
        for key in _SHOWN:
            if row[key]:
                own[f"ccnn.{phase}.{key}"] = quantity(key, row[key])
        moved = row["dram_read_bytes"] + row["dram_write_bytes"]
        own[f"ccnn.{phase}.dram_bytes"] = quantity("dram_read_bytes", moved)
        own[f"ccnn.{phase}.busiest"] = f"{row['bound_by']} {100 * row['bound_share']:.0f} %"
    for ref in compilation.program.nodes:
        tiling = compilation.mapping.tilings.get(ref.name)
        if tiling is not None and ref.origin:
            found[ref.origin][f"ccnn.{ref.phase}.tiles.{ref.name}"] = str(tiling)
    return dict(found)


def _leave_out(tensor: onnx.TensorProto) -> None:
    if prod(tensor.dims) <= LARGEST_KEPT:
        return
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data",
                  "uint64_data", "string_data", "external_data"):  # fmt: skip
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=LEFT_OUT)
