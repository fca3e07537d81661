"""The report: what a step costs, against its bounds and the baseline, as JSON, text and CSV."""

from ccnn.compiler.report.bounds import Bound, Precision, bounds
from ccnn.compiler.report.build import build_report
from ccnn.compiler.report.load import load_report, report_schema
from ccnn.compiler.report.show import show_report
from ccnn.compiler.report.table import layers_csv

__all__ = [
    "Bound",
    "Precision",
    "bounds",
    "build_report",
    "layers_csv",
    "load_report",
    "report_schema",
    "show_report",
]
