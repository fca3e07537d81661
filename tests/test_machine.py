"""Machines: what ships, what is inherited, what the derived numbers are."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from ccnn.targets.machine import MachineError, describe, load_machine, shipped_machines


def test_shipped_machines_are_these():
    assert set(shipped_machines()) >= {"wavecore", "wavecore-base", "tpu-like", "tiny"}


@pytest.mark.parametrize("name", shipped_machines())
def test_shipped_machine_loads_under_its_own_name(name: str):
    machine = load_machine(name)
    assert machine.name == name
    assert all(row.source for row in machine.energy)
    assert machine.arrays * machine.rows * machine.cols == machine.peak_macs_per_cycle


def test_wavecore_reaches_half_of_the_chips_peak():
    """Two such cores make the 45 TFLOPS chip."""
    machine = load_machine("wavecore")
    assert 2 * 2 * machine.peak_macs_per_cycle * machine.clock_ghz / 1000 == pytest.approx(
        45.9, 0.01
    )


def test_base_differs_in_the_weight_register_only():
    full, base = load_machine("wavecore"), load_machine("wavecore-base")
    assert (full.weight_buffers, base.weight_buffers) == (2, 1)
    same = replace(base, name=full.name, description=full.description, weight_buffers=2)
    assert same == full


def test_bytes_per_cycle_is_exact():
    assert load_machine("wavecore").bytes_per_cycle == Fraction(150 * 2**30, 700_000_000)
    assert load_machine("tiny").bytes_per_cycle == Fraction(3 * 2**30, 4 * 100_000_000)


def test_fingerprint_follows_numbers_not_words():
    machine = load_machine("tiny")
    assert replace(machine, description="other").fingerprint == machine.fingerprint
    assert replace(machine, rows=5).fingerprint != machine.fingerprint
    dearer = tuple(replace(row, pj=row.pj + 1) for row in machine.energy)
    assert replace(machine, energy=dearer).fingerprint != machine.fingerprint


def test_describe_names_the_sources():
    text = describe(load_machine("wavecore"))
    assert "128 x 128 PEs" in text
    assert "10 MiB" in text
    assert "Horowitz" in text


def test_a_file_inherits_from_a_shipped_machine_and_from_a_file(tmp_path):
    (tmp_path / "parent.yaml").write_text(
        "name: parent\ndescription: p\ninherits: tiny\narray:\n  rows: 8\n"
    )
    child = tmp_path / "child.yaml"
    child.write_text("name: child\ndescription: c\ninherits: parent.yaml\narray:\n  cols: 16\n")
    machine = load_machine(child)
    assert (machine.rows, machine.cols, machine.acc_rows) == (8, 16, load_machine("tiny").acc_rows)


def test_a_machine_made_by_hand_is_checked():
    with pytest.raises(MachineError, match="lanes is 0"):
        replace(load_machine("tiny"), lanes=0)


def test_description_reads_well(golden):
    golden("targets/tiny.txt", describe(load_machine("tiny")))
