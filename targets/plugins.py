"""Machines of other packages, found through the entry-point group `ccnn.plugins`.

An installed package declares each as `machine.NAME`, pointing to the path of its YAML file:

    [project.entry-points."ccnn.plugins"]
    "machine.toy" = "toy:MACHINE"

    MACHINE = importlib.resources.files("toy") / "toy.yaml"
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from ccnn.targets.machine_yaml import MachineError

GROUP = "ccnn.plugins"


def plugin_machines() -> tuple[str, ...]:
    """Names of the machines that other packages bring, sorted; nothing is imported for it."""
    return tuple(sorted({e.name.partition(".")[2] for e in _entries()}))


def plugin_machine(name: str) -> bytes | None:
    """The YAML file of a machine of another package; None when there is no such machine.

    Raises MachineError when two packages declare it, or when it cannot be read.
    """
    found = [e for e in _entries() if e.name == f"machine.{name}"]
    if not found:
        return None
    if len(found) > 1:
        homes = " and ".join(sorted(_home_of(e) for e in found))
        raise MachineError(f"the machine '{name}' is declared by {homes}; uninstall one of them")
    entry = found[0]
    try:
        return bytes(entry.load().read_bytes())
    except Exception as error:  # a stranger's module may raise anything
        raise MachineError(
            f"the plug-in {entry.name} = {entry.value} of {_home_of(entry)} cannot be loaded: "
            f"{type(error).__name__}: {error}; repair that package or uninstall it"
        ) from error


def _entries() -> list[EntryPoint]:
    # A package that is on the path twice, as an editable one may be, declares the same twice.
    whole = {(e.name, e.value, _home_of(e)): e for e in entry_points(group=GROUP)}
    return [whole[key] for key in sorted(whole) if key[0].startswith("machine.")]


def _home_of(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"
