"""Ops and passes of other packages, found through the entry-point group `ccnn.plugins`.

An installed package declares them in its pyproject.toml, one entry a thing, kind first:

    [project.entry-points."ccnn.plugins"]
    "op.square" = "toy.ops:Square"
    "pass.find-squares" = "toy.passes:FindSquares"

Names are known without importing anything; a package is imported when one of its names is asked
for.  What ccnn itself has comes first and cannot be replaced.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from ccnn.passes.graph import GraphError

GROUP = "ccnn.plugins"


class PluginError(GraphError):
    """A plug-in that cannot be loaded or is not what its entry point says."""


def plugin_names(kind: str) -> tuple[str, ...]:
    """Names of the plug-ins of a kind ('op' or 'pass'), sorted."""
    return tuple(sorted({e.name.partition(".")[2] for e in _entries(kind)}))


def load_plugin(kind: str, name: str) -> object | None:
    """What a plug-in's entry point names; None when there is no such plug-in.

    Raises PluginError when two packages declare it, or when it cannot be imported.
    """
    found = [e for e in _entries(kind) if e.name == f"{kind}.{name}"]
    if not found:
        return None
    if len(found) > 1:
        homes = " and ".join(sorted(home_of(e) for e in found))
        raise PluginError(f"the {kind} '{name}' is declared by {homes}; uninstall one of them")
    entry = found[0]
    try:
        return entry.load()
    except Exception as error:  # a stranger's module may raise anything
        raise PluginError(
            f"the plug-in {entry.name} = {entry.value} of {home_of(entry)} cannot be loaded: "
            f"{type(error).__name__}: {error}; repair that package or uninstall it"
        ) from error


def _entries(kind: str) -> list[EntryPoint]:
    # A package that is on the path twice, as an editable one may be, declares the same twice.
    whole = {(e.name, e.value, home_of(e)): e for e in entry_points(group=GROUP)}
    return [whole[key] for key in sorted(whole) if key[0].startswith(f"{kind}.")]


def home_of(entry: EntryPoint) -> str:
    """The package and version that declare an entry point."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"
