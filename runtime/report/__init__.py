"""Reports of a memory plan: a page with charts, a CSV summary and node data for Model Explorer."""

from typing import TYPE_CHECKING

from ..lazy import attach

if TYPE_CHECKING:
    from .charts import load_bokeh
    from .page import report_html
    from .summary import model_explorer_node_data, node_data, summary_csv
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "charts": ("load_bokeh",),
            "page": ("report_html",),
            "summary": ("model_explorer_node_data", "node_data", "summary_csv"),
        },
    )

__all__ = ["load_bokeh", "model_explorer_node_data", "node_data", "report_html", "summary_csv"]
