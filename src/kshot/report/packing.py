"""What the page's script reads: JSON and plotly.js, compressed, as text that no row can break out of.

A browser undoes it with `DecompressionStream("deflate")`, without a network. Base64 has no `<`, so that no
text of users ends the element it stands in.
"""

import json
import zlib
from base64 import b64encode
from collections.abc import Sequence
from functools import cache

from kshot.report.figures.drawing import PLOTLY_INSTALLED, Figure
from kshot.report.listing import Listing

MAX_BYTES = 3_500_000  # of a page's rows and pictures; with plotly.js and the text it stays under 6 MB
LENGTHS = (4_000, 2_000, 1_000, 500, 240)  # characters of a text, tried in turn
_LEVEL = 6  # zlib's own: 9 takes three times as long for 2 % less


def pack(text: str) -> str:
    """Return a text compressed and in base64; half a surrogate pair, which JSON may hold, becomes `?`."""
    return b64encode(zlib.compress(text.encode("utf-8", "replace"), _LEVEL)).decode("ascii")


def pack_page(figures: Sequence[Figure], listings: Sequence[Listing], max_bytes: int = MAX_BYTES) -> str:
    """Pack the pictures and the rows of a page.

    Texts are cut in their middle, and then rows left out, until all fits; the page says how many it has.

    Args:
        figures: Those that are drawn.
        listings: Their entries may be left out from the end.
        max_bytes: Most that the result has, if the pictures alone have not more.
    """
    specs = {figure.id: figure.spec for figure in figures if figure.spec is not None}
    most = max((len(listing.entries) for listing in listings), default=0)
    length, num_entries = LENGTHS[0], most
    while True:
        packed = pack(_page_json(specs, listings, num_entries, length))
        if len(packed) <= max_bytes or num_entries <= 1:
            return packed
        if length != LENGTHS[-1]:
            length = LENGTHS[LENGTHS.index(length) + 1]
        else:
            num_entries //= 2


@cache
def packed_plotly() -> str:
    """Return plotly.js, packed; nothing where Plotly is not installed."""
    if not PLOTLY_INSTALLED:
        return ""
    from plotly.offline import get_plotlyjs

    return pack(str(get_plotlyjs()))


def _page_json(specs: dict[str, str], listings: Sequence[Listing], num_entries: int, length: int) -> str:
    rows = {listing.id: listing.to_json(num_entries, length) for listing in listings}
    figures = ",".join(f"{json.dumps(name)}:{spec}" for name, spec in specs.items())  # JSON already
    listed = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
    return f'{{"figures":{{{figures}}},"listings":{listed}}}'
