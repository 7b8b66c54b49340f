"""Self-contained HTML pages with pictures, in light and dark."""

from pipeline.report.pages import (
    DemoReport,
    Gallery,
    SweepPage,
    write_demo_report,
    write_gallery,
    write_sweep_page,
)
from pipeline.report.pictures import false_colours, tile

__all__ = [
    "DemoReport",
    "Gallery",
    "SweepPage",
    "false_colours",
    "tile",
    "write_demo_report",
    "write_gallery",
    "write_sweep_page",
]
