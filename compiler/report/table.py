"""layers.csv: one row a layer, for spreadsheets and plotting."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from ccnn.compiler.report.fields import LAYER_EXTRAS, LAYER_TOTALS

COLUMNS = ("node", "kind", "phase", "ops", *(f.key for f in (*LAYER_TOTALS, *LAYER_EXTRAS)))
"""The header; units are those of report.json."""


def layers_csv(layers: Sequence[Mapping[str, Any]]) -> str:
    """The layers of a report as comma-separated values with a header."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for layer in layers:
        row = {**layer, "ops": " ".join(layer["ops"])}
        writer.writerow([_spreadsheet_safe(row[column]) for column in COLUMNS])
    return out.getvalue()


def _spreadsheet_safe(value: Any) -> Any:
    """Node names come from the model; one that starts like a formula must not become one."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@"):
        return f"'{value}"
    return value
