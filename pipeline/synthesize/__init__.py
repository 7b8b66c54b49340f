"""`era synthesize`: defocus pairs with known blur from sharp photographs, laid out like DPDD."""

from pipeline.synthesize.write import synthesize

__all__ = ["synthesize"]
