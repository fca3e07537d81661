"""The tables of docs/published.md are those of the rows kept in benchmarks/results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

ROWS = ROOT / "benchmarks" / "results" / "mbs.json"
PAGE = ROOT / "docs" / "published.md"


def test_the_page_shows_the_rows(request):
    import mbs

    before, rest = PAGE.read_text(encoding="utf-8").split("<!-- results -->\n")
    shown, after = rest.split("<!-- end -->")
    expected = mbs.tables(ROWS)
    if request.config.getoption("--update-golden"):
        page = f"{before}<!-- results -->\n{expected}<!-- end -->{after}"
        PAGE.write_text(page, encoding="utf-8")
        return
    assert shown == expected


def test_rows_are_fractions_of_the_conventional_row():
    """Of each network, buffer and memory; and what was kept is all that was moved."""
    found = json.loads(ROWS.read_text(encoding="utf-8"))
    for part, rows in found.items():
        base = {
            (r["net"], r["gbuf_mib"], _memory(r)): r
            for r in rows if r["schedule"].startswith("baseline")
        }  # fmt: skip
        for row in rows:
            of = base[row["net"], row["gbuf_mib"], _memory(row)]
            assert row["dram_x"] == round(row["dram_bytes"] / of["dram_bytes"], 4), (part, row)
            assert row["cycles_x"] == round(row["cycles"] / of["cycles"], 4), (part, row)
            assert sum(row["classes"].values()) == row["dram_bytes"], (part, row)


def _memory(row: dict) -> str:
    """The memory that a row of `speed` names behind its schedule."""
    return next((m for m in ("HBM2 x2", "HBM2", "LPDDR4") if row["schedule"].endswith(m)), "")
