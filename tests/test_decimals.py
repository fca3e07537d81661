"""Numbers that a float32 was meant to be."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccnn.compiler.reader.decimals import meant


@pytest.mark.parametrize(
    "number",
    [0.9, 1e-5, 0.1, -0.3, 0.75, 1 / 6, -2 / 3, math.sqrt(2), math.sqrt(0.5), math.sqrt(8),
     8**-0.25, math.sqrt(2 / math.pi), math.pi, 1.6732632423543772, 0.0, 3.0],
)  # fmt: skip
def test_what_was_written_is_read(number: float) -> None:
    found = meant(float(np.float32(number)))
    assert np.float32(found) == np.float32(number)
    assert found == pytest.approx(number, rel=1e-15 if number != 1.6732632423543772 else 4e-8)


@given(st.floats(width=32, allow_nan=False))
def test_it_always_rounds_to_the_float32_at_hand(number: float) -> None:
    assert np.float32(meant(number)) == np.float32(number)


def test_what_is_no_float32_stays() -> None:
    assert meant(0.1) == 0.1
    assert math.isnan(meant(math.nan))
