"""From PyTorch to the passes without ONNX: a torch.export program, walked node by node.

Each aten operator becomes one op of the graph language; the table below is all it takes for a
small network, and grows by a line an operator.  The gradients are compared with autograd's.

    pip install torch
    python examples/torch_export.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ccnn.passes.autodiff import differentiate
from ccnn.passes.graph import Builder, Graph
from ccnn.passes.interpret import interpret
from ccnn.passes.pipeline import DEFAULT, run_pipeline


def conv2d(b: Builder, x: str, w: str, bias: str | None = None, stride: Sequence[int] = (1, 1),
           padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1),
           groups: int = 1) -> str:  # fmt: skip
    """aten.conv2d: the same padding on both sides."""
    return b.emit(
        "conv",
        [x, w, *([bias] if bias else [])],
        strides=stride,
        pads=(*padding, *padding),
        dilations=dilation,
        group=groups,
    )


def batch_norm(b: Builder, x: str, scale: str, bias: str, mean: str, var: str, _training: bool,
               momentum: float, epsilon: float, _cudnn: bool) -> str:  # fmt: skip
    """aten.batch_norm: PyTorch's momentum is the share of the new value, ours of the old."""
    return b.emit(
        "batch_norm", [x, scale, bias, mean, var], epsilon=epsilon, momentum=1 - momentum,
        unbiased=True,
    )  # fmt: skip


def max_pool2d(b: Builder, x: str, kernel: Sequence[int], stride: Sequence[int] = (),
               padding: Sequence[int] = (0, 0)) -> str:  # fmt: skip
    """aten.max_pool2d: windows that touch when no stride is given."""
    return b.emit(
        "max_pool", [x], kernel=kernel, strides=stride or kernel, pads=(*padding, *padding),
        dilations=(1, 1),
    )  # fmt: skip


def flatten(b: Builder, x: str, start: int = 0, end: int = -1) -> str:
    """aten.flatten."""
    shape = b.shape(x)
    last = end % len(shape)
    size = int(torch.tensor(shape[start : last + 1]).prod())
    return b.emit("reshape", [x], shape=(*shape[:start], size, *shape[last + 1 :]))


def linear(b: Builder, x: str, w: str, bias: str | None = None) -> str:
    """aten.linear: x times w transposed."""
    return b.emit("matmul", [x, w, *([bias] if bias else [])], trans_a=False, trans_b=True)


TABLE: dict[Any, Callable[..., str]] = {
    torch.ops.aten.conv2d.default: conv2d,
    torch.ops.aten.batch_norm.default: batch_norm,
    torch.ops.aten.relu.default: lambda b, x: b.emit("relu", [x]),
    torch.ops.aten.max_pool2d.default: max_pool2d,
    torch.ops.aten.flatten.using_ints: flatten,
    torch.ops.aten.linear.default: linear,
    torch.ops.aten.add.Tensor: lambda b, x, y: b.emit("add", [x, y]),
}


def to_graph(program: torch.export.ExportedProgram, name: str) -> tuple[Graph, str]:
    """The program under a mean cross-entropy; the graph and its loss."""
    b, signature = Builder(name), program.graph_signature
    parameters, buffers = signature.inputs_to_parameters, signature.inputs_to_buffers
    known: dict[torch.fx.Node, str] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            stored = parameters.get(node.name) or buffers.get(node.name)
            shape = tuple(node.meta["val"].shape)
            if stored is None:
                known[node] = b.input(node.name, shape)
            elif node.meta["val"].is_floating_point():
                role = "parameter" if node.name in parameters else "state"
                value = program.state_dict[stored].detach().numpy().copy()
                known[node] = b.declare(stored, shape, role, data=value)
        elif node.op == "output":
            results = {a.name: a for a in node.args[0]}
            (output,) = (known[results[o]] for o in signature.user_outputs)
        elif node.target in TABLE and all(a in known for a in node.all_input_nodes):
            arguments = [known[a] if isinstance(a, torch.fx.Node) else a for a in node.args]
            known[node] = TABLE[node.target](b, *arguments)
        elif any(a in known for a in node.all_input_nodes):
            raise NotImplementedError(f"{node.target} is not in the table: add a line for it")
    target = b.input("target", b.shape(output)[:1], "index")
    loss = b.emit("softmax_cross_entropy", [output, target], reduction="mean")
    return b.build([output, loss]), loss


def worst_difference(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> float:
    """Largest difference between ccnn's gradients and autograd's, over the largest of each."""
    program = torch.export.export(model, (x,))
    graph, loss = to_graph(program, "from_torch")
    step = run_pipeline(differentiate(graph, loss), DEFAULT)
    (name,) = (t.name for t in step.of_role("input") if t.dtype == "float")
    found = interpret(step, {name: x.numpy(), "target": target.numpy()})
    nn.functional.cross_entropy(model(x), target).backward()
    # A bias in front of a batch norm has no gradient but rounding: measured by the largest of all.
    truth = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    largest = max(float(g.abs().max()) for g in truth.values())
    return max(
        float((torch.from_numpy(found[step.gradients[n]].copy()) - g).abs().max()) / largest
        for n, g in truth.items()
    )


def main() -> None:
    """A small network in float64, where only rounding may differ."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 10),
    ).double()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    worst = worst_difference(model, x, torch.randint(0, 10, (4,)))
    print(f"largest difference to autograd: {worst:.1e}")


if __name__ == "__main__":
    main()
