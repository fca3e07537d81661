"""Affine addresses and extents turned into small closures over the loop variables.

The variables live in one list, `env`, a place for each nesting level; `Scope` says which place a
variable has and how often its loop runs, from which come exact ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ccnn.targets.program import Affine, Extent
from ccnn.targets.simulator.errors import SimulationError

Scope = Mapping[str, tuple[int, int]]
"""Variable to (place in env, trip count of its loop)."""

Getter = Callable[[], int]


def _terms(affine: Affine, scope: Scope) -> list[tuple[int, int, int]]:
    """(place, coefficient, trip) of each term; raises SimulationError for an unknown variable."""
    try:
        return [(scope[v][0], c, scope[v][1]) for v, c in affine.terms if c]
    except KeyError as error:
        raise SimulationError(
            f"loop variable {error} is used outside its loop; variables here: {sorted(scope)}"
        ) from error


def affine_range(affine: Affine, scope: Scope) -> tuple[int, int]:
    """The smallest and largest value over all iterations of the loops in scope."""
    low = high = affine.const
    for _, coefficient, trip in _terms(affine, scope):
        reach = coefficient * max(trip - 1, 0)
        low, high = low + min(reach, 0), high + max(reach, 0)
    return low, high


def compile_affine(affine: Affine, scope: Scope, env: Sequence[int]) -> Getter:
    """A closure that gives the present value."""
    const = affine.const
    match _terms(affine, scope):
        case []:
            return lambda: const
        case [(i, a, _)]:
            return lambda: const + a * env[i]
        case [(i, a, _), (j, b, _)]:
            return lambda: const + a * env[i] + b * env[j]
        case [(i, a, _), (j, b, _), (k, c, _)]:
            return lambda: const + a * env[i] + b * env[j] + c * env[k]
        case terms:
            pairs = tuple((i, a) for i, a, _ in terms)

    def many() -> int:
        value = const
        for place, coefficient in pairs:
            value += coefficient * env[place]
        return value

    return many


def fixed_extent(extent: Extent, scope: Scope) -> int | None:
    """The extent if it is the same in every iteration, else None."""
    if extent.limit is None:
        return extent.size
    low, high = affine_range(extent.limit, scope)
    if low >= extent.size:
        return extent.size
    return low if low == high else None


def compile_extent(extent: Extent, scope: Scope, env: Sequence[int]) -> Getter:
    """A closure that gives the present number of elements."""
    fixed = fixed_extent(extent, scope)
    if fixed is not None or extent.limit is None:
        value = extent.size if fixed is None else fixed
        return lambda: value
    size, limit = extent.size, compile_affine(extent.limit, scope, env)
    return lambda: min(size, limit())


def compile_many(getters: Sequence[Getter]) -> Callable[[], tuple[int, ...]]:
    """A closure that gives the values of several getters as a tuple."""
    match tuple(getters):
        case ():
            return lambda: ()
        case (a,):
            return lambda: (a(),)
        case (a, b):
            return lambda: (a(), b())
        case (a, b, c):
            return lambda: (a(), b(), c())
        case (a, b, c, d):
            return lambda: (a(), b(), c(), d())
        case several:
            return lambda: tuple([g() for g in several])
