"""Tables, figures and the HTML report, made from run directories alone."""

from plasticity_cl.report.html import write_report
from plasticity_cl.report.read import read_runs
from plasticity_cl.report.tables import summary_table

__all__ = ["read_runs", "summary_table", "write_report"]
