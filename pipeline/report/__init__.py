"""Pages for people who would rather look than read: self-contained HTML, light and dark."""

from pipeline.report.pages import DemoReport, Gallery, write_demo_report, write_gallery
from pipeline.report.pictures import Case, false_colours, tile

__all__ = [
    "Case",
    "DemoReport",
    "Gallery",
    "false_colours",
    "tile",
    "write_demo_report",
    "write_gallery",
]
