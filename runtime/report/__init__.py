"""Reports of a memory plan: a page with charts, a CSV summary and node data for Model Explorer."""

from .charts import load_bokeh
from .page import report_html
from .summary import model_explorer_node_data, node_data, summary_csv

__all__ = ["load_bokeh", "model_explorer_node_data", "node_data", "report_html", "summary_csv"]
