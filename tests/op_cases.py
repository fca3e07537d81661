"""Small instances of every op, for the walk over OPS in test_ops.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """One use of an op: input shapes (Index for class numbers) and attributes."""

    op: str
    shapes: tuple[Any, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    positive: bool = False
    """Inputs drawn from [0.5, 2] rather than from a normal distribution."""
    gradient: bool = True

    def __str__(self) -> str:
        return f"{self.op}-{'-'.join(str(s) for s in self.shapes)}-{sorted(self.attrs.items())}"


@dataclass(frozen=True)
class Index:
    """An input of integers below `high`."""

    shape: tuple[int, ...]
    high: int


def conv(
    strides: tuple = (1, 1),
    pads: tuple = (0, 0, 0, 0),
    dilations: tuple = (1, 1),
    group: int = 1,
    **more: Any,
) -> dict[str, Any]:
    """Attributes of a convolution."""
    return {"strides": strides, "pads": pads, "dilations": dilations, "group": group, **more}


def pool(
    kernel: tuple, strides: tuple, pads: tuple, dilations: tuple = (1, 1), **more: Any
) -> dict[str, Any]:
    """Attributes of a pooling op."""
    return {"kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations, **more}


X = (2, 3, 5, 4)
UNARY = [
    "relu", "leaky_relu", "elu", "selu", "celu", "sigmoid", "tanh", "hard_sigmoid",
    "hard_swish", "softplus", "softsign", "gelu", "erf", "sin", "cos", "mish", "silu", "exp",
    "neg", "abs", "reciprocal",
]  # fmt: skip
BINARY = ["add", "sub", "mul", "div", "min", "max", "prelu"]
NO_GRADIENT = ("sign", "floor")

CASES: tuple[Case, ...] = (
    *(Case(op, (X,)) for op in UNARY),
    *(Case(op, (X,), gradient=False) for op in NO_GRADIENT),
    *(Case(op, (X,), positive=True) for op in ("sqrt", "log")),
    *(
        Case(op, s, positive=op == "div")
        for op in BINARY
        for s in ((X, X), (X, (3, 1, 1)), ((4,), X), ((1, 4), (4,)))
    ),
    Case("leaky_relu", (X,), {"alpha": -0.3}),
    Case("elu", (X,), {"alpha": -0.5}),
    Case("gelu", (X,), {"approximate": "tanh"}),
    *(Case("clip", (X,), a) for a in ({}, {"min": -0.5}, {"max": 0.5}, {"min": -0.3, "max": 0.6})),
    Case("pow", (X, X), positive=True),
    Case("detached", (X, (3, 1, 1)), {"expr": "a > b"}, gradient=False),
    Case("where", ((1, 4), (4,), (1, 1, 4))),
    Case("where", ((2, 1, 5, 4), X, (3, 1, 1))),
    Case(
        "map",
        (X, (3, 1, 1)),
        {"exprs": ("a * b", "max(a, b) - 1"), "dtypes": ("float", "accum")},
        gradient=False,
    ),
    Case(
        "reduce",
        (X, (3, 1, 1)),
        {"kind": "sum", "exprs": ("a * b", "b"), "axes": (0, 2), "dtypes": ("float", "accum")},
        gradient=False,
    ),
    Case("moments", (X,), {"axes": (0, 2, 3)}, gradient=False),
    Case("random", (), {"shape": (3, 4), "seed": 7}, gradient=False),
    Case("conv", ((2, 3, 6, 5), (4, 3, 3, 2), (4,)), conv()),
    Case("conv", ((2, 3, 7, 6), (4, 3, 3, 2)), conv((2, 3), (1, 0, 2, 1))),
    Case("conv", ((1, 4, 7, 6), (6, 2, 2, 2)), conv((2, 1), (0, 1, 1, 0), (2, 3), 2)),
    Case("conv", ((2, 4, 5, 5), (4, 1, 3, 3), (4,)), conv((2, 2), (1, 1, 1, 1), group=4)),
    Case(
        "conv_dx",
        ((2, 4, 4, 3), (4, 3, 3, 2)),
        conv((2, 2), (1, 0, 2, 1), shape=(2, 3, 7, 5)),
        gradient=False,
    ),
    Case(
        "conv_dw",
        ((2, 4, 7, 5), (2, 6, 4, 3)),
        conv((2, 2), (1, 0, 2, 1), group=2, shape=(6, 2, 3, 2)),
        gradient=False,
    ),
    Case(
        "conv_transpose",
        ((2, 4, 3, 4), (4, 3, 3, 2), (3,)),
        conv((2, 1), (1, 0, 0, 1), output_padding=(1, 0)),
    ),
    Case(
        "conv_transpose",
        ((1, 4, 3, 3), (4, 2, 2, 3)),
        conv((1, 2), (0, 1, 1, 0), (2, 1), 2, output_padding=(2, 5)),
    ),
    Case("matmul", ((4, 3), (3, 5), (5,)), {"trans_a": False, "trans_b": False}),
    *(
        Case("matmul", (a, b), {"trans_a": ta, "trans_b": tb})
        for ta in (False, True)
        for tb in (False, True)
        for a, b in (
            ((2, 3, 4)[:1] + ((3, 4)[::-1] if ta else (3, 4)), ((4, 5)[::-1] if tb else (4, 5))),
            (((3, 4)[::-1] if ta else (3, 4)), ((4, 5)[::-1] if tb else (4, 5))),
            ((2, *((3, 4)[::-1] if ta else (3, 4))), (2, *((4, 5)[::-1] if tb else (4, 5)))),
        )
    ),
    *(
        Case(
            "batch_norm", (X, *[(3,)] * 4), {"epsilon": 1e-3, "momentum": 0.8, "unbiased": u}, True
        )
        for u in (True, False)
    ),
    Case(
        "batch_norm",
        ((6, 3), *[(3,)] * 4),
        {"epsilon": 1e-3, "momentum": 0.8, "unbiased": True},
        True,
    ),
    Case("batch_norm_grad", (X, X, (3,), (1, 3, 1, 1), (1, 3, 1, 1)), gradient=False),
    Case("group_norm", ((2, 6, 3, 2), (6,), (6,)), {"groups": 2, "epsilon": 1e-3}),
    Case("group_norm", ((2, 6, 5), (6,), (6,)), {"groups": 3, "epsilon": 1e-3}),
    Case(
        "group_norm_grad",
        (*[(2, 6, 3, 2)] * 2, (6,), *[(2, 6, 1, 1)] * 2),
        {"groups": 6},
        gradient=False,
    ),
    Case("instance_norm", (X, (3,), (3,)), {"epsilon": 1e-3}),
    Case("layer_norm", (X, (5, 4), (5, 4)), {"axis": 2, "epsilon": 1e-3}),
    Case("layer_norm", (X, (4,)), {"axis": 3, "epsilon": 1e-3}),
    Case("layer_norm", (X,), {"axis": 1, "epsilon": 1e-3}),
    Case("layer_norm_grad", (X, X, (4,), *[(2, 3, 5, 1)] * 2), {"axis": 3}, gradient=False),
    Case("lrn", ((2, 7, 3, 2),), {"size": 4, "alpha": 0.3, "beta": 0.75, "bias": 1.5}),
    Case("softmax", (X,), {"axis": 1}),
    Case("log_softmax", (X,), {"axis": 3}),
    Case("max_pool", (X,), pool((2, 2), (2, 2), (0, 0, 0, 0))),
    Case("max_pool", ((1, 2, 7, 6),), pool((3, 2), (2, 1), (1, 0, 1, 1), (1, 2))),
    Case("max_pool", ((2, 3, 9),), pool((3,), (2,), (1, 1), (1,))),
    *(
        Case(
            "avg_pool",
            ((2, 2, 7, 6),),
            pool((3, 2), (2, 1), (1, 0, 1, 1), count_include_pad=c, ceil_extra=(1, 0)),
        )
        for c in (True, False)
    ),
    Case("avg_pool", (X,), pool((2, 2), (1, 2), (0, 0, 0, 0))),
    *(
        Case(
            op,
            ((1, 3, 6, 5),),
            {
                "kernel": (1, 2, 3, 2),
                "strides": (1, 1, 2, 1),
                "before": (0, 1, 1, 0),
                "after": (0, 0, 0, 1),
                "dilations": (1, 1, 1, 2),
            },
            gradient=False,
        )
        for op in ("window_sum", "window_max")
    ),
    Case(
        "window_sum_grad",
        ((1, 2, 3, 4),),
        {
            "kernel": (1, 1, 3, 2),
            "strides": (1, 1, 2, 1),
            "before": (0, 0, 1, 0),
            "after": (0, 0, 0, 0),
            "dilations": (1, 1, 1, 1),
            "shape": (1, 2, 6, 5),
        },
        gradient=False,
    ),
    Case(
        "window_max_grad",
        ((1, 2, 3, 4), Index((1, 2, 3, 4), 6)),
        {
            "kernel": (1, 1, 3, 2),
            "strides": (1, 1, 2, 1),
            "before": (0, 0, 0, 0),
            "after": (0, 0, 0, 0),
            "dilations": (1, 1, 1, 1),
            "shape": (1, 2, 7, 5),
        },
        gradient=False,
    ),
    *(
        Case(f"reduce_{k}", (X,), {"axes": axes, "keepdims": keep})
        for k in ("sum", "mean", "max", "min", "l1", "l2", "sumsq")
        for axes, keep in (((2, 3), False), ((1,), True))
    ),
    Case("concat", (X, (2, 1, 5, 4), X), {"axis": 1}),
    Case("slice", (X,), {"starts": (0, 2, 4, 1), "steps": (1, -1, -2, 2), "sizes": (2, 2, 3, 1)}),
    Case("slice", (X,), {"starts": (0, 0, 1, 0), "steps": (1, 1, 3, 1), "sizes": (2, 3, 2, 4)}),
    Case(
        "pad",
        (X,),
        {"before": (0, 1, -1, 2), "after": (0, 0, 2, -1), "mode": "constant", "value": 0.5},
    ),
    Case(
        "pad",
        (X,),
        {"before": (0, 1, -3, 0), "after": (0, 0, 2, -2), "interior": (0, 1, 1, 2), "value": 0.0},
    ),
    Case(
        "pad",
        (X,),
        {"before": (0, 0, 2, 1), "after": (0, 0, 1, 3), "mode": "reflect", "value": 0.0},
    ),
    Case(
        "pad", (X,), {"before": (0, 1, 2, 0), "after": (0, 0, 1, 3), "mode": "edge", "value": 0.0}
    ),
    Case("reshape", (X,), {"shape": (6, 20)}),
    Case("transpose", (X,), {"perm": (2, 0, 3, 1)}),
    Case("expand", ((4,),), {"shape": (1, 1, 4)}),
    Case("expand", ((3, 1, 4),), {"shape": (2, 3, 5, 4)}),
    Case("gather", (X,), {"axis": 2, "indices": (4, 2, 0, 0, 1, 2)}),
    Case(
        "gather", ((2, 20, 3),), {"axis": 1, "indices": tuple((7 * k * k) % 20 for k in range(30))}
    ),
    Case("dropout", (X,), {"ratio": 0.3, "seed": 5}),
    *(
        Case("softmax_cross_entropy", ((3, 4, 2), Index((3, 2), 4), *w), {"reduction": r, **a})
        for w in ((), ((4,),))
        for r in ("mean", "sum", "none")
        for a in ({}, {"ignore_index": 2, "log_prob": True})
    ),
    Case("mse", (X, X)),
    *(
        Case(
            "sgd",
            (X, X, *v),
            {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": n},
            gradient=False,
        )
        for v, n in (((), False), ((X,), False), ((X,), True))
    ),
    *(
        Case(
            "adam",
            (X, X, X, X, ()),
            {"lr": 0.1, "weight_decay": 0.01, "decoupled": d},
            True,
            gradient=False,
        )
        for d in (True, False)
    ),
)
