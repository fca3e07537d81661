"""Fixtures that all tests share."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable
from pathlib import Path

# Before numpy is imported, which reads it once: the workers of pytest are the parallelism here,
# and on small waves two BLAS threads mostly wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# What is tested is the work, not what an earlier run left; tests of the cache say otherwise.
os.environ["CCNN_NO_CACHE"] = "1"

import pytest
from hypothesis import HealthCheck, settings

# How fast a machine makes examples is no property of ccnn.
settings.register_profile("ccnn", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ccnn")

sys.path.insert(0, str(Path(__file__).parent))  # tests may import helpers that lie beside them
GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write what golden tests got as expected"
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)` compares a text with the file tests/golden/name."""
    update = request.config.getoption("--update-golden")

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        if not path.exists():
            pytest.fail(f"tests/golden/{name} is missing: run pytest --update-golden and review it")
        expected = path.read_text(encoding="utf-8")
        if text != expected:
            lines = difflib.unified_diff(
                expected.splitlines(), text.splitlines(), f"golden/{name}", "now", lineterm=""
            )
            pytest.fail(
                "\n".join(lines) + "\nif the new text is right: pytest --update-golden",
                pytrace=False,
            )

    return compare
