"""Pages for people who would rather look than read: self-contained HTML, light and dark."""

from pipeline.report.pages import (
    DemoReport,
    Gallery,
    SweepPage,
    write_demo_report,
    write_gallery,
    write_sweep_page,
)
from pipeline.report.pictures import Case, false_colours, tile

__all__ = [
    "Case",
    "DemoReport",
    "Gallery",
    "SweepPage",
    "false_colours",
    "tile",
    "write_demo_report",
    "write_gallery",
    "write_sweep_page",
]
