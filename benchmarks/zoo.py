"""Full-size networks as ONNX, built from their published layer tables, without weights.

    python benchmarks/zoo.py NAME... [-o FOLDER]       names: see NETWORKS; default: all of them

A file is small: each weight is a ConstantOfShape node, which the reader fills with drawn values.
Sources: He et al. 2016 (ResNet, stride in the 3x3 convolution), Szegedy et al. 2016 (Inception-v3
without the auxiliary head) and 2017 (Inception-v4), Krizhevsky et al. 2012 (AlexNet, one tower),
Huang et al. 2017 (DenseNet), Sandler et al. 2018 (MobileNet-v2), Simonyan and Zisserman 2015 (VGG),
Tan and Le 2019 (EfficientNet), Xie et al. 2017 (ResNeXt).
`SIZES` in tests/test_zoo.py has their published sizes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Pair = int | tuple[int, int]


class Net:
    """An ONNX graph under construction; a tensor is its name, its channels are in `channels`."""

    def __init__(self, name: str, side: int) -> None:
        self.name = name
        self.nodes: list[onnx.NodeProto] = []
        self.shapes: list[onnx.TensorProto] = []
        self.channels = {"input": 3}
        self.side = side

    def weight(self, name: str, *shape: int) -> str:
        """A parameter without values."""
        self.shapes.append(numpy_helper.from_array(np.array(shape, np.int64), f"{name}.shape"))
        fill = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.01])
        node = helper.make_node("ConstantOfShape", [f"{name}.shape"], [name], name, value=fill)
        self.nodes.append(node)
        return name

    def op(self, kind: str, inputs: Sequence[str], channels: int, **attributes: object) -> str:
        """Append a node; its result."""
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        self.channels[name] = channels
        return name

    def conv(
        self, x: str, k: int, size: Pair = 1, stride: int = 1, pad: Pair | None = None,
        group: int = 1, bias: bool = False,
    ) -> str:  # fmt: skip
        """A convolution; without `pad` the image keeps its size at stride 1."""
        r, s = (size, size) if isinstance(size, int) else size
        p, q = (r // 2, s // 2) if pad is None else (pad, pad) if isinstance(pad, int) else pad
        c, stem = self.channels[x], f"c{len(self.nodes)}"
        inputs = [x, self.weight(f"{stem}.w", k, c // group, r, s)]
        inputs += [self.weight(f"{stem}.b", k)] if bias else []
        sizes = {"kernel_shape": [r, s], "strides": [stride] * 2, "pads": [p, q, p, q]}
        return self.op("Conv", inputs, k, **sizes, group=group)

    def norm(self, x: str) -> str:
        """A batch norm."""
        c, stem = self.channels[x], f"n{len(self.nodes)}"
        rest = [self.weight(f"{stem}.{k}", c) for k in ("scale", "bias", "mean", "var")]
        return self.op("BatchNormalization", [x, *rest], c, epsilon=1e-5)

    def relu(self, x: str) -> str:
        return self.op("Relu", [x], self.channels[x])

    def unit(self, x: str, k: int, size: Pair = 1, stride: int = 1, pad: Pair | None = None) -> str:
        """Convolution, batch norm, relu."""
        return self.relu(self.norm(self.conv(x, k, size, stride, pad)))

    def add(self, *xs: str) -> str:
        return self.op("Add", xs, self.channels[xs[0]])

    def concat(self, *xs: str) -> str:
        return self.op("Concat", xs, sum(self.channels[x] for x in xs), axis=1)

    def pool(self, x: str, size: int, stride: int, pad: int = 0, kind: str = "Max") -> str:
        sizes = {"kernel_shape": [size] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
        return self.op(f"{kind}Pool", [x], self.channels[x], **sizes)

    def dense(self, x: str, inner: int, outer: int) -> str:
        stem = f"d{len(self.nodes)}"
        w, b = self.weight(f"{stem}.w", outer, inner), self.weight(f"{stem}.b", outer)
        return self.op("Gemm", [x, w, b], outer, transB=1)

    def flat(self, x: str) -> str:
        return self.op("Flatten", [x], self.channels[x])

    def classify(self, x: str) -> str:
        """Global average pool and 1000 classes."""
        x = self.flat(self.op("GlobalAveragePool", [x], self.channels[x]))
        return self.dense(x, self.channels[x], 1000)

    def model(self, output: str) -> onnx.ModelProto:
        """The finished model, for batch 1."""
        float_, shape = TensorProto.FLOAT, [1, 3, self.side, self.side]
        graph = helper.make_graph(
            self.nodes, self.name,
            [helper.make_tensor_value_info("input", float_, shape)],
            [helper.make_tensor_value_info(output, float_, [1, 1000])], self.shapes,
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def resnet(depths: tuple[int, ...], widths: Sequence[int] = ()) -> onnx.ModelProto:
    """Bottleneck blocks of 64, 128, 256 and 512 channels, or as many as `widths` says of each
    convolution (a block's shortcut comes last)."""
    net, left = Net(f"resnet{3 * sum(depths) + 2}", 224), iter(widths)
    x = net.pool(net.unit("input", next(left, 64), 7, 2), 3, 2, 1)
    for stage, depth in enumerate(depths):
        for block in range(depth):
            k, stride = 64 << stage, 2 if stage and not block else 1
            y = net.unit(net.unit(x, next(left, k)), next(left, k), 3, stride)
            y = net.norm(net.conv(y, next(left, 4 * k)))
            x = x if block else net.norm(net.conv(x, next(left, 4 * k), 1, stride))
            x = net.relu(net.add(y, x))
    return net.model(net.classify(x))


def inception_v3() -> onnx.ModelProto:
    net = Net("inception_v3", 299)
    u, pool, concat = net.unit, net.pool, net.concat
    x = u(u(u("input", 32, 3, 2, 0), 32, 3, 1, 0), 64, 3)
    x = pool(u(u(pool(x, 3, 2), 80), 192, 3, 1, 0), 3, 2)
    for last in (32, 64, 64):
        five, double = u(u(x, 48), 64, 5), u(u(u(x, 64), 96, 3), 96, 3)
        x = concat(u(x, 64), five, double, u(pool(x, 3, 1, 1, "Average"), last))
    x = concat(u(x, 384, 3, 2, 0), u(u(u(x, 64), 96, 3), 96, 3, 2, 0), pool(x, 3, 2))
    for k in (128, 160, 160, 192):
        seven = u(u(u(x, k), k, (1, 7)), 192, (7, 1))
        double = u(u(u(u(x, k), k, (7, 1)), k, (1, 7)), k, (7, 1))
        double = u(double, 192, (1, 7))
        x = concat(u(x, 192), seven, double, u(pool(x, 3, 1, 1, "Average"), 192))
    three = u(u(x, 192), 320, 3, 2, 0)
    seven = u(u(u(u(x, 192), 192, (1, 7)), 192, (7, 1)), 192, 3, 2, 0)
    x = concat(three, seven, pool(x, 3, 2))
    for _ in range(2):
        y, z = u(x, 384), u(u(x, 448), 384, 3)
        wide = [u(t, 384, size) for t in (y, z) for size in ((1, 3), (3, 1))]
        x = concat(u(x, 320), *wide, u(pool(x, 3, 1, 1, "Average"), 192))
    return net.model(net.classify(x))


def inception_v4() -> onnx.ModelProto:
    net = Net("inception_v4", 299)
    u, pool, concat = net.unit, net.pool, net.concat
    x = u(u(u("input", 32, 3, 2, 0), 32, 3, 1, 0), 64, 3)
    x = concat(pool(x, 3, 2), u(x, 96, 3, 2, 0))
    long = u(u(u(u(x, 64), 64, (1, 7)), 64, (7, 1)), 96, 3, 1, 0)
    x = concat(u(u(x, 64), 96, 3, 1, 0), long)
    x = concat(u(x, 192, 3, 2, 0), pool(x, 3, 2))
    for _ in range(4):
        three, double = u(u(x, 64), 96, 3), u(u(u(x, 64), 96, 3), 96, 3)
        x = concat(u(x, 96), three, double, u(pool(x, 3, 1, 1, "Average"), 96))
    x = concat(u(x, 384, 3, 2, 0), u(u(u(x, 192), 224, 3), 256, 3, 2, 0), pool(x, 3, 2))
    for _ in range(7):
        seven = u(u(u(x, 192), 224, (1, 7)), 256, (7, 1))
        double = u(u(u(u(x, 192), 192, (7, 1)), 224, (1, 7)), 224, (7, 1))
        double = u(double, 256, (1, 7))
        x = concat(u(x, 384), seven, double, u(pool(x, 3, 1, 1, "Average"), 128))
    three = u(u(x, 192), 192, 3, 2, 0)
    seven = u(u(u(u(x, 256), 256, (1, 7)), 320, (7, 1)), 320, 3, 2, 0)
    x = concat(three, seven, pool(x, 3, 2))
    for _ in range(3):
        y, z = u(x, 384), u(u(u(x, 384), 448, (3, 1)), 512, (1, 3))
        wide = [u(t, 256, size) for t in (y, z) for size in ((1, 3), (3, 1))]
        x = concat(u(x, 256), *wide, u(pool(x, 3, 1, 1, "Average"), 256))
    return net.model(net.classify(x))


def alexnet() -> onnx.ModelProto:
    """Without local response norms, as trained today; no norm at all, so none is replaced."""
    net = Net("alexnet", 227)
    x = net.pool(net.relu(net.conv("input", 96, 11, 4, 0, bias=True)), 3, 2)
    x = net.pool(net.relu(net.conv(x, 256, 5, bias=True)), 3, 2)
    for k in (384, 384, 256):
        x = net.relu(net.conv(x, k, 3, bias=True))
    x = net.flat(net.pool(x, 3, 2))
    x = net.relu(net.dense(x, 256 * 6 * 6, 4096))
    return net.model(net.dense(net.relu(net.dense(x, 4096, 4096)), 4096, 1000))


def densenet(name: str, depths: tuple[int, ...]) -> onnx.ModelProto:
    net = Net(name, 224)
    x = net.pool(net.unit("input", 64, 7, 2), 3, 2, 1)
    for stage, depth in enumerate(depths):
        if stage:
            x = net.conv(net.relu(net.norm(x)), net.channels[x] // 2)
            x = net.pool(x, 2, 2, 0, "Average")
        for _ in range(depth):
            y = net.conv(net.relu(net.norm(x)), 128)
            x = net.concat(x, net.conv(net.relu(net.norm(y)), 32, 3))
    return net.model(net.classify(net.relu(net.norm(x))))


def mobilenet_v2() -> onnx.ModelProto:
    net = Net("mobilenet_v2", 224)

    def six(x: str) -> str:
        return net.op("Clip", [net.norm(x), "zero", "six"], net.channels[x])

    for name, value in (("zero", 0.0), ("six", 6.0)):
        net.shapes.append(helper.make_tensor(name, TensorProto.FLOAT, [], [value]))
    x = six(net.conv("input", 32, 3, 2))
    table = (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
        (6, 320, 1, 1),
    )  # fmt: skip
    for grow, k, count, first in table:
        for block in range(count):
            stride, c = 1 if block else first, net.channels[x]
            y = x if grow == 1 else six(net.conv(x, grow * c))
            y = six(net.conv(y, grow * c, 3, stride, group=grow * c))
            y = net.norm(net.conv(y, k))
            x = net.add(x, y) if block else y
    return net.model(net.classify(six(net.conv(x, 1280))))


def efficientnet_b0() -> onnx.ModelProto:
    net = Net("efficientnet_b0", 224)

    def swish(x: str) -> str:
        c = net.channels[x]
        return net.op("Mul", [x, net.op("Sigmoid", [x], c)], c)

    def excite(x: str, squeezed: int) -> str:
        """Each channel times a weight made from the means of all."""
        c = net.channels[x]
        y = swish(net.conv(net.op("GlobalAveragePool", [x], c), squeezed, bias=True))
        return net.op("Mul", [x, net.op("Sigmoid", [net.conv(y, c, bias=True)], c)], c)

    x = swish(net.norm(net.conv("input", 32, 3, 2)))
    table = (
        (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1),
        (6, 5, 192, 4, 2), (6, 3, 320, 1, 1),
    )  # fmt: skip
    for grow, size, k, count, first in table:
        for block in range(count):
            stride, c = 1 if block else first, net.channels[x]
            y = x if grow == 1 else swish(net.norm(net.conv(x, grow * c)))
            y = swish(net.norm(net.conv(y, grow * c, size, stride, group=grow * c)))
            y = net.norm(net.conv(excite(y, c // 4), k))
            x = net.add(x, y) if block else y
    return net.model(net.classify(swish(net.norm(net.conv(x, 1280)))))


def resnext50() -> onnx.ModelProto:
    """32 groups, of 4 channels in the first stage."""
    net = Net("resnext50", 224)
    x = net.pool(net.unit("input", 64, 7, 2), 3, 2, 1)
    for stage, depth in enumerate((3, 4, 6, 3)):
        for block in range(depth):
            k, stride = 128 << stage, 2 if stage and not block else 1
            y = net.conv(net.unit(x, k), k, 3, stride, group=32)
            y = net.norm(net.conv(net.relu(net.norm(y)), 2 * k))
            x = x if block else net.norm(net.conv(x, 2 * k, 1, stride))
            x = net.relu(net.add(y, x))
    return net.model(net.classify(x))


def vgg16() -> onnx.ModelProto:
    net, x = Net("vgg16", 224), "input"
    for k, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            x = net.relu(net.conv(x, k, 3, bias=True))
        x = net.pool(x, 2, 2)
    x = net.relu(net.dense(net.flat(x), 512 * 7 * 7, 4096))
    return net.model(net.dense(net.relu(net.dense(x, 4096, 4096)), 4096, 1000))


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet50": lambda: resnet((3, 4, 6, 3)),
    "resnet101": lambda: resnet((3, 4, 23, 3)),
    "resnet152": lambda: resnet((3, 8, 36, 3)),
    "inception_v3": inception_v3,
    "inception_v4": inception_v4,
    "alexnet": alexnet,
    "densenet121": lambda: densenet("densenet121", (6, 12, 24, 16)),
    "mobilenet_v2": mobilenet_v2,
    "efficientnet_b0": efficientnet_b0,
    "resnext50": resnext50,
    "vgg16": vgg16,
}


def main(arguments: list[str]) -> int:
    """Write the networks as files."""
    parser = argparse.ArgumentParser(description="networks without weights, as ONNX files")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NETWORKS))
    parser.add_argument("-o", type=Path, default=Path("ccnn-out/zoo"), metavar="FOLDER")
    asked = parser.parse_args(arguments)
    if unknown := [n for n in asked.names if n not in NETWORKS]:
        parser.error(f"no network '{unknown[0]}'; there are {', '.join(NETWORKS)}")
    asked.o.mkdir(parents=True, exist_ok=True)
    for name in asked.names or NETWORKS:
        onnx.save(NETWORKS[name](), asked.o / f"{name}.onnx")
        sys.stdout.write(f"{asked.o / name}.onnx\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
