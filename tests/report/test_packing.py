"""What the script of a page reads: it comes out as it went in, breaks out of nothing, and fits."""

import json
import random
import zlib
from base64 import b64decode
from typing import Any

from kshot.report.figures.drawing import Figure
from kshot.report.listing import Chip, Detail, Entry, Listing, Select
from kshot.report.packing import LENGTHS, pack, pack_page


def _unpacked(packed: str) -> Any:
    return json.loads(zlib.decompress(b64decode(packed)))


def _listing(texts: list[str]) -> Listing:
    entries = tuple(
        Entry("1", text, (Chip("✓ base", "right"),), (Detail("id", text),), frozenset({"b", "a"}))
        for text in texts
    )
    return Listing("rows", "row", entries, (Select("case", (("", "all"),)),), len(entries), "rows.json")


def test_roundtrip_of_hostile_text() -> None:
    text = "</script><!-- \u2028 é \ud83d \\ud83d"
    packed = pack_page([Figure("one", "", 1, '{"data": []}')], [_listing([text])])
    assert "<" not in packed
    found = _unpacked(packed)
    entry = found["listings"]["rows"]["entries"][0]
    shown = text.replace("\ud83d", "?")
    assert entry == ["1", shown, [["✓ base", "right"]], [["id", shown, ""]], ["a", "b"]]
    assert found["figures"] == {"one": {"data": []}}


def test_invariant_same_text_same_bytes() -> None:
    assert pack("x" * 1000) == pack("x" * 1000)


def test_texts_are_cut_and_then_rows_left_out_until_it_fits() -> None:
    draw = random.Random(0)
    texts = ["".join(chr(draw.randrange(33, 0x2FF)) for _ in range(3_000)) for _ in range(60)]
    whole = pack_page([], [_listing(texts)])
    assert len(whole) > 300_000
    cut = pack_page([], [_listing(texts)], max_bytes=200_000)
    rows = _unpacked(cut)["listings"]["rows"]["entries"]
    assert len(cut) <= 200_000
    assert len(rows) == 60
    assert max(len(row[1]) for row in rows) <= max(LENGTHS[1:]) + 10
    fewer = pack_page([], [_listing(texts)], max_bytes=10_000)
    assert len(fewer) <= 10_000
    assert 0 < len(_unpacked(fewer)["listings"]["rows"]["entries"]) < 60


def test_page_without_rows() -> None:
    assert _unpacked(pack_page([], [])) == {"figures": {}, "listings": {}}
