"""A training step as plain ONNX: standard operators that any ONNX runtime executes."""

from ccnn.compiler.export.step import export_graph, export_model, export_step, training_step
from ccnn.compiler.export.writer import ExportError

__all__ = ["ExportError", "export_graph", "export_model", "export_step", "training_step"]
