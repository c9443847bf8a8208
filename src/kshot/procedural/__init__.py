"""Procedural families: rows with rationales for a bank, an open pool and the demo's target."""

from kshot.procedural.demo_pool import draw_pool
from kshot.procedural.families import FAMILIES, draw_family
from kshot.procedural.shopping import draw_shopping

__all__ = ["FAMILIES", "draw_family", "draw_pool", "draw_shopping"]
