"""What each figure leaves out, in one sentence, for whoever hovers over it."""

from __future__ import annotations

from ccnn.compiler.report.fields import LAYER_EXTRAS, TOTALS

LEAVES_OUT = {
    "cycles": "instruction fetch, loop control, bank conflicts, DRAM refresh and row misses",
    "seconds": "whatever the cycles leave out; the clock never changes",
    "macs": "what the vector unit computes; multiplications with padding are counted",
    "dram_read_bytes": "instruction fetch, and the rounding of bursts",
    "dram_write_bytes": "the rounding of bursts",
    "gbuf_bytes": "padding that LD writes, and bank conflicts",
    "lbuf_bytes": "registers of the PEs",
    "energy_pj": "dependence on data, temperature and voltage; control and instruction fetch",
    "pe_utilisation": "nothing: idle cycles count against it; a layer that overlaps its neighbours "
    "is given the busy cycles of its busiest engine where these are more than its own",
    "program_bytes": "the tensors; fetching the program takes no time",
    "instructions": "tokens and loop control, which take no time of their own",
    "share": "nothing: shares add up to 100 %",
    "bound_by": "engines that were waiting rather than working",
    "bound_share": "work that overlaps a neighbouring layer",
}
"""Key of a figure to what it does not count."""


def metric_note(key: str) -> str:
    """Unit, formula and omissions of a figure, as one sentence to hover over."""
    field = next(f for f in (*TOTALS, *LAYER_EXTRAS) if f.key == key)
    return f"{field.title} [{field.unit}] = {field.formula}. Leaves out: {LEAVES_OUT[key]}."


def metric_rows() -> list[dict[str, str]]:
    """Every figure with title, unit, formula and omissions, for a table."""
    return [
        {
            "key": f.key,
            "title": f.title,
            "unit": f.unit,
            "formula": f.formula,
            "leaves_out": LEAVES_OUT[f.key],
        }
        for f in (*TOTALS, *LAYER_EXTRAS)
    ]
