"""The same model gives the same bytes, whatever order Python's hashes happen to have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import reference

MODEL = reference.DATA / "resnet8_cifar" / "model.onnx"
FILES = ("program.bin", "program.asm", "mapping.txt", "report.json", "layers.csv")


def compiled(folder: Path, hash_seed: int, target: str) -> dict[str, bytes]:
    """The files that `ccnn compile` writes in a process with this hash seed."""
    command = [sys.executable, "-m", "ccnn.compiler", "compile", str(MODEL), "--target", target]
    done = subprocess.run(
        [*command, "--quiet", "-o", "out"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
    )
    assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}


@pytest.mark.parametrize("target", ["wavecore", pytest.param("tiny", marks=pytest.mark.slow)])
def test_same_bytes_on_any_hash_seed(tmp_path, target):
    results = []
    for seed in (0, 4242):
        folder = tmp_path / str(seed)
        folder.mkdir()
        results.append(compiled(folder, seed, target))
    assert set(results[0]) >= set(FILES)
    assert set(results[0]) == set(results[1])
    changed = [name for name, content in results[0].items() if content != results[1][name]]
    assert changed == []
