"""The demo catalogue: a shop drawn procedurally, with 250 tags and a long tail.

`write_demo_catalogue` writes it, `contact_sheet` shows it. Nothing in it is real: products,
brands and photographs are drawn from numbers, the same for the same seed on every machine.
"""

from retailtag.demo.drawing.sheet import contact_sheet
from retailtag.demo.drawing.write import DemoSummary, write_demo_catalogue

__all__ = ["DemoSummary", "contact_sheet", "write_demo_catalogue"]
