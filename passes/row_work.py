"""What each node of a run that goes by rows does with the rows of its tensors."""

from __future__ import annotations

from dataclasses import dataclass

from ccnn.passes.graph import Graph, Node

Rows = tuple[int, int]
"""First row, and one past the last."""

AXIS = 2
"""The dim of [N, C, H, W] that holds the rows."""


@dataclass(frozen=True)
class Slide:
    """How a window slides over rows: result p reads rows p*stride - before + r*dilation."""

    kernel: int
    stride: int
    dilation: int
    before: int

    def reads(self, results: Rows) -> Rows:
        """Rows that these results read, inside the image or not."""
        low, high = (p * self.stride - self.before for p in (results[0], results[1] - 1))
        return low, high + (self.kernel - 1) * self.dilation + 1

    def results(self, rows: Rows) -> Rows:
        """The results that read any of these rows, inside the image or not."""
        span = (self.kernel - 1) * self.dilation
        low = -((span - rows[0] - self.before) // self.stride)
        return low, (rows[1] - 1 + self.before) // self.stride + 1


@dataclass(frozen=True)
class Link:
    """An input with rows, and how they follow from the rows the node works on."""

    tensor: str
    slide: Slide | None = None
    """None: the same rows."""
    back: bool = False
    """The input holds the results of the slide, and the node works on what they read."""

    def reads(self, rows: Rows) -> Rows:
        """Rows of the input, inside the image or not."""
        if self.slide is None:
            return rows
        return self.slide.results(rows) if self.back else self.slide.reads(rows)


@dataclass(frozen=True)
class Work:
    """What a node does with rows."""

    driver: str
    """The tensor whose rows say which part of its work the node does: a result, or what it sums."""
    links: tuple[Link, ...]
    sums: bool = False
    """It adds up over the rows."""


class NoBands(Exception):
    """Why a run of nodes cannot run band by band."""


def work_of(graph: Graph, node: Node) -> Work:
    """How the rows of a node's tensors belong together; raises NoBands for a node that reads
    others."""
    shapes = [graph[i].shape for i in node.inputs if i]
    made = graph[node.outputs[0]].shape
    if node.op in ("conv", "conv_dx", "conv_dw") and len(shapes[0]) == 4:
        return _convolution(graph, node)
    if node.op.startswith("window_") and len(made) == 4:
        k, s, d, b = (node.attr(a)[AXIS] for a in ("kernel", "strides", "dilations", "before"))
        back = node.op.endswith("_grad")
        read = node.inputs[: 2 if node.op == "window_max_grad" else 1]
        return Work(node.outputs[0], tuple(Link(t, Slide(k, s, d, b), back) for t in read))
    joins = node.op == "map" or (node.op == "concat" and node.attr("axis") == 1)
    if joins and len(made) == 4 and all(len(s) in (0, 4) for s in shapes) and made[AXIS] > 1:
        read = [i for i in node.inputs if graph[i].shape[AXIS:][:1] == made[AXIS:][:1]]
        return Work(node.outputs[0], tuple(Link(i) for i in dict.fromkeys(read)))
    if node.op == "moments" and len(shapes[0]) == 4 and {0, AXIS} <= {*node.attr("axes")}:
        return Work(node.inputs[0], (Link(node.inputs[0]),), sums=True)
    if node.op == "reduce" and node.attr("kind") == "sum" and AXIS in node.attr("axes"):
        high = max(s[AXIS] if len(s) == 4 else 0 for s in shapes)
        read = [i for i in node.inputs if len(graph[i].shape) == 4 and graph[i].shape[AXIS] == high]
        if high > 1 and all(len(s) == 4 for s in shapes) and 0 in node.attr("axes"):
            return Work(read[0], tuple(Link(i) for i in dict.fromkeys(read)), sums=True)
    raise NoBands(f"'{node.name}' ({node.op}) does not work on rows of images")


def _convolution(graph: Graph, node: Node) -> Work:
    weights = graph[node.outputs[0] if node.op == "conv_dw" else node.inputs[1]]
    stride, dilation, top = (node.attr(a)[0] for a in ("strides", "dilations", "pads"))
    slide = Slide(weights.shape[AXIS], stride, dilation, top)
    if node.op == "conv_dw":
        x, dy = node.inputs
        return Work(dy, (Link(x, slide), Link(dy)), sums=True)
    return Work(node.outputs[0], (Link(node.inputs[0], slide, node.op == "conv_dx"),))
