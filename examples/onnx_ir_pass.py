"""ccnn inside a pipeline of onnx_ir: a pass that turns a model into its training step.

onnx_ir's own passes run before and after it; what comes out is an onnx_ir model like any other.

    pip install onnx-ir
    python examples/onnx_ir_pass.py tests/data/resnet8_cifar/model.onnx ccnn-out/step.onnx
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass

from ccnn.compiler import CompileOptions
from ccnn.compiler.export import export_model


@dataclass
class TrainingStep(ir.passes.FunctionalPass):
    """Forward, loss, backward and update of a model, in standard operators."""

    options: CompileOptions = field(default_factory=lambda: CompileOptions(dtype="float32"))
    lowered: bool = False

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError for a model that has nothing to train."""
        if not model.graph.initializers:
            raise ir.passes.PreconditionError("the model has no initializers to train")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """The step as a new model; the given one stays as it is."""
        step = export_model(ir.to_proto(model), self.options, lowered=self.lowered)
        return ir.passes.PassResult(ir.from_proto(step), modified=True)


def training_step(model: ir.Model, options: CompileOptions) -> ir.Model:
    """The step of a model, cleaned by onnx_ir before and after."""
    manager = ir.passes.PassManager(
        [RemoveUnusedNodesPass(), TrainingStep(options), CommonSubexpressionEliminationPass()]
    )
    return manager(model).model


def main(source: Path, target: Path) -> None:
    """Read a model, write its step."""
    options = CompileOptions(dtype="float32", batch=4)
    step = training_step(ir.load(source), options)
    target.parent.mkdir(parents=True, exist_ok=True)
    ir.save(step, target)
    gradients = [v.name for v in step.graph.outputs if (v.name or "").startswith("grad/")]
    print(f"{len(step.graph)} nodes, {len(gradients)} gradients")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
