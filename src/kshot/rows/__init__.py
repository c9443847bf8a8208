"""Raw rows of files, Arrow folders, patterns and Hub data sets, each with the place where it stands.

Every reader streams: of a file of any size no more than a batch, a line or an item is in memory.
"""

from kshot.rows.hub import HUB_SCHEME, HubDataset
from kshot.rows.sources import FILE_KINDS, PlacedRow, expand, file_rows, placed_rows

__all__ = ["FILE_KINDS", "HUB_SCHEME", "HubDataset", "PlacedRow", "expand", "file_rows", "placed_rows"]
