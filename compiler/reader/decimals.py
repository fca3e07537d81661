"""The number that a float32 in an ONNX file was meant to be.

ONNX keeps attributes and constants in float32, so a momentum of 0.9 arrives as 0.8999999762.
Computed in float64 that error of 3e-8 would stand in every result.  Where a short decimal, a
small fraction or a well-known root rounds to exactly the float32 at hand, that is what was written.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

_ROOTS = (math.sqrt(2 / math.pi), math.sqrt(math.pi), math.pi, math.e, math.log(2))
_DIGITS = 6
"""Decimals of up to this many digits are taken as written; a float32 holds a little more than 7."""


def meant(value: float) -> float:
    """The float64 that stands for a float32, and rounds to it."""
    single = np.float32(value)
    if not np.isfinite(single) or float(single) != value:
        return float(value)
    short = np.format_float_scientific(single, unique=True, trim="-")
    digits = short.split("e")[0].replace(".", "").lstrip("-")
    if len(digits) <= _DIGITS:
        return float(short)
    for candidate in (_simple(value, 1), *_ROOTS, _simple(value, 2), _simple(value, 4)):
        if np.float32(candidate) == abs(single):
            return math.copysign(candidate, value)
    return float(short)


def _simple(value: float, power: int) -> float:
    """The root of this power of a fraction with a small denominator, nearest to |value|."""
    return float(Fraction(abs(value) ** power).limit_denominator(64)) ** (1 / power)
