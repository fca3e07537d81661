"""Parts of the simulator that stand alone: matrix windows and random numbers."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnn.targets.simulator import uniform
from ccnn.targets.simulator.windows import box, gather_index, offsets


@given(
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(-7, 7)), min_size=1, max_size=4),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_a_box_has_the_offsets_of_its_window(sizes, data):
    dims_ = tuple(sizes)
    total = int(np.prod([n for n, _ in dims_]))
    start = data.draw(st.integers(0, total - 1))
    count = data.draw(st.integers(1, total - start))
    places = np.unravel_index(range(start, start + count), [n for n, _ in dims_])
    want = sum(p * s for p, (_, s) in zip(places, dims_, strict=True))
    np.testing.assert_array_equal(offsets(dims_, start, count), want)
    found = box(dims_, start, count)
    if found is not None:
        inner = found[1]
        np.testing.assert_array_equal(
            found[0] + offsets(inner, 0, count) if inner else [found[0]], want
        )


def splitmix(state: int):
    """splitmix64 as Steele, Lea and Flood print it."""
    mask = (1 << 64) - 1
    while True:
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        yield z ^ (z >> 31)


def test_random_is_splitmix64_keyed_by_seed_and_step():
    steps = splitmix(next(splitmix(42)))
    key = [next(steps) for _ in range(4)][3]
    stream = splitmix(key)
    want = [next(stream) >> 40 for _ in range(20)][5:]
    np.testing.assert_array_equal(uniform(42, 3, 5, 15) * 2**24, want)
    many = uniform(1, 0, 0, 100_000)
    assert many.min() >= 0 and many.max() < 1  # noqa: PT018
    assert abs(many.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(many[1:], many[:-1])[0, 1]) < 0.02


def test_gather_index_counts_from_its_lowest_element():
    """A 2 x 3 window of rows with stride -10 and columns with stride 2."""
    lowest, highest, picks = gather_index(((4, -10),), 1, 2, ((5, 2),), 2, 3)
    assert (lowest, highest) == (-20 + 4, -10 + 8)
    np.testing.assert_array_equal(picks + lowest, [[-6, -4, -2], [-16, -14, -12]])
