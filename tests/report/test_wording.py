"""Numbers and texts as people read them."""

import pytest

from kshot.report import wording


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (wording.percent(0.62, 0.0344), "62.0 ± 3.4 %"),
        (wording.percent(1.0), "100.0 %"),
        (wording.points(0.31, 0.041), "31.0 ± 4.1 points"),
        (wording.signed_points(-0.031), "−3.1"),
        (wording.signed_points(0.0), "+0.0"),
        (wording.p_value(0.0341), "= 0.034"),
        (wording.p_value(0.00099), "< 0.001"),
        (wording.p_value(1.0), "= 1"),
        (wording.p_value(None), "unknown"),
        (wording.number(2.12345), "2.123"),
        (wording.number(-1.5), "−1.5"),
        (wording.number(None), "∞"),
        (wording.plural(1, "row"), "1 row"),
        (wording.plural(1200, "row"), "1,200 rows"),
        (wording.plural(2, "copy", "copies"), "2 copies"),
        (wording.duration(47.6), "48 s"),
        (wording.duration(200), "3 min 20 s"),
        (wording.duration(7500), "2 h 5 min"),
        (wording.clip(" short ", 9), "short"),
        (wording.clip("0123456789", 9), "012345 […] 789"),
        (wording.flat({"a": 1, "b": {"c": None}}), {"a": 1, "b.c": None}),
    ],
)
def test_golden(got: object, want: object) -> None:
    assert got == want
