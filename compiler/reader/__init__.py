"""The reader: an ONNX file as a Graph, or everything that stands in the way and how to fix it."""

from ccnn.compiler.reader.options import ReadOptions, ReadResult
from ccnn.compiler.reader.problems import Problem, ReadError, ReadReport
from ccnn.compiler.reader.read import read_model

__all__ = ["Problem", "ReadError", "ReadOptions", "ReadReport", "ReadResult", "read_model"]
