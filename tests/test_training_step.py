"""Whole training steps, interpreted before and after the pipeline, against PyTorch autograd."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reference import DATA, errors, read

from ccnn.compiler.reader import ReadOptions, read_model
from ccnn.passes.autodiff import Optimizer, differentiate
from ccnn.passes.graph import Graph
from ccnn.passes.interpret import after_step, interpret
from ccnn.passes.pipeline import run_pipeline
from ccnn.passes.text import parse_graph, print_graph

MODELS = sorted(DATA.glob("*/model.onnx"))


def two_steps(graph: Graph, values: dict[str, np.ndarray], loss: str) -> dict[str, np.ndarray]:
    """The results of two steps, under the keys of the references."""
    first = interpret(graph, values)
    carried = after_step(graph, first)
    second = interpret(graph, {**values, **carried}, step=1)
    results = {"loss": first[loss], "loss2": second[loss], "output": first[graph.outputs[0]]}
    for name, grad in graph.gradients.items():
        input_ = graph[name].role == "input"
        results["grad_input" if input_ else f"grad/{name}"] = first[grad]
    for name in carried:
        results[f"w1/{name}"] = results[f"bn1/{name}"] = carried[name]
        results[f"w2/{name}"] = second[graph.updates[name]]
    return results


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.parent.name)
def test_two_steps_agree_with_pytorch(path: Path) -> None:
    truth, data = read(path.parent / "ref_f64.npz"), read(path.parent / "inputs.npz")
    model = read_model(path, ReadOptions(batch=len(data["input"])))
    lr, momentum, decay = (float(h) for h in truth["hyper"])
    trained = differentiate(
        model.graph,
        model.loss,
        input_gradients=model.inputs,
        optimizer=Optimizer(lr=lr, momentum=momentum, weight_decay=decay),
    )
    lowered = run_pipeline(trained)
    assert parse_graph(print_graph(lowered)) == lowered
    values = {model.inputs[0]: data["input"], model.target: data["target"]}
    for graph in (trained, lowered):
        found = errors(truth, two_steps(graph, values, model.loss))
        worst = max(found, key=lambda key: found[key])
        assert found[worst] < 1e-9, worst


def test_there_are_models_to_compare() -> None:
    assert len(MODELS) >= 3
