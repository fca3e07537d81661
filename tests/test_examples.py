"""The scripts in examples/ do what they say, each in an interpreter of its own."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from reference import DATA, errors, read
from test_export import run

from ccnn.compiler.driver import CompileOptions
from ccnn.passes.autodiff import Optimizer

EXAMPLES = Path(__file__).parent.parent / "examples"
RESNET = DATA / "resnet8_cifar" / "model.onnx"


def script(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-sP", "-c", code, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def example(name: str, *arguments: str) -> str:
    """What an example prints when it is run as a script, and the packages it has loaded."""
    code = (
        "import runpy, sys\n"
        f"runpy.run_path({str(EXAMPLES / name)!r}, run_name='__main__')\n"
        "print('loaded', *sorted({m.split('.')[0] for m in sys.modules}))\n"
    )
    return script(code, *arguments)


def test_a_graph_built_by_hand_needs_no_onnx_and_no_solver():
    said = example("own_graph.py")
    loaded = set(said.splitlines()[-1].split())
    assert {"ccnn", "numpy", "networkx"} <= loaded
    assert not loaded & {"onnx", "ortools", "click", "rich", "jinja2", "yaml", "jsonschema"}
    rows = re.findall(r"^(forward|loss|backward|update) +(\w+)", said, re.M)
    assert ("backward", "conv_dw") in rows
    assert [op for phase, op in rows if phase == "update"] == ["map", "map"]
    first, last = re.search(r"^loss ([\d.]+) -> ([\d.]+)$", said, re.M).groups()
    assert float(last) < 0.1 * float(first)


def test_the_pass_of_the_example_changes_what_it_says():
    module = runpy.run_path(str(EXAMPLES / "own_graph.py"))
    graph, _ = module["network"]()
    softened = module["SoftenRelus"](alpha=0.5)(graph)
    before, after = (
        [(n.op, n.attr("alpha")) for n in g.nodes if "relu" in n.op] for g in (graph, softened)
    )
    assert (before, after) == ([("relu", None)], [("leaky_relu", 0.5)])


class TestOnnxIr:
    """The pass for onnx_ir's pass manager."""

    def test_the_script_writes_a_step(self, tmp_path):
        pytest.importorskip("onnx_ir")
        said = example("onnx_ir_pass.py", str(RESNET), str(tmp_path / "new" / "step.onnx"))
        assert re.search(r"^\d+ nodes, 29 gradients$", said, re.M)
        made = onnx.load(tmp_path / "new" / "step.onnx")
        onnx.checker.check_model(made, full_check=True)
        assert sum(o.name.startswith("w1/") for o in made.graph.output) == 29

    def test_gradients_are_pytorchs(self):
        ir = pytest.importorskip("onnx_ir")
        module = runpy.run_path(str(EXAMPLES / "onnx_ir_pass.py"))
        truth, inputs = read(RESNET.parent / "ref_f64.npz"), read(RESNET.parent / "inputs.npz")
        lr, momentum, decay = (float(h) for h in truth["hyper"])
        options = CompileOptions(
            dtype="float32", batch=len(inputs["input"]),
            optimizer=Optimizer("sgd", lr, momentum, decay),
        )  # fmt: skip
        model = ir.load(RESNET)
        count = len(model.graph)
        step = module["training_step"](model, options)
        assert len(model.graph) == count
        results = run(ir.to_proto(step), inputs)
        found = errors(truth, results)
        kinds = ("output", "grad/", "w1/", "bn1/")
        checked = [k for k in found if k == "loss" or k.startswith(kinds)]
        assert len(checked) == 2 + 29 * 2 + 18
        assert {k: found[k] for k in checked if not found[k] <= 1e-3} == {}

    def test_a_model_without_weights_is_refused(self):
        ir = pytest.importorskip("onnx_ir")
        module = runpy.run_path(str(EXAMPLES / "onnx_ir_pass.py"))
        empty = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 20}), ir_version=10)
        with pytest.raises(ir.passes.PreconditionError, match="the model has no initializers"):
            module["TrainingStep"]()(empty)


def test_a_torch_export_program_has_autograds_gradients():
    pytest.importorskip("torch")
    worst = float(example("torch_export.py").split("autograd:")[1].split()[0])
    assert worst < 1e-12
    assert np.isfinite(worst)


def test_two_passes_work_where_neither_onnx_nor_a_solver_can_be_imported():
    blocked = ("onnx", "ortools", "jinja2", "yaml", "jsonschema", "ml_dtypes", "click", "rich")
    code = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "try:\n    import onnx\nexcept ImportError:\n    print('blocked')\n"
        f"runpy.run_path({str(EXAMPLES / 'two_passes.py')!r}, run_name='__main__')\n"
    )
    said = script(code)
    assert said.startswith("blocked\n6 norms and gradients of norms become\n")
    assert re.search(r"^group of \d+ samples at a time: .*map.*, conv1, norm2/moments$", said, re.M)
    before, after = re.search(r"^DRAM ([\d,]+) -> ([\d,]+) bytes$", said, re.M).groups()
    assert int(after.replace(",", "")) < 0.7 * int(before.replace(",", ""))
    assert float(said.split("difference of a gradient:")[1]) < 1e-12
