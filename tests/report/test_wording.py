"""Numbers and texts as people read them."""

import pytest

from kshot.report import wording

GLUE = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (wording.percent(0.62, 0.0344), "62.0 ± 3.4 %"),
        (wording.percent(1.0), "100.0 %"),
        (wording.points(0.31, 0.041), "31.0 ± 4.1 points"),
        (wording.signed(-0.031, 0.02), "−3.1 ± 2.0"),
        (wording.signed(0.0), "0.0"),
        (wording.signed(0.031), "+3.1"),
        (wording.p_value(0.0341), "p = 0.034"),
        (wording.p_value(0.00099), "p < 0.001"),
        (wording.p_number(0.00099), "< 0.001"),
        (wording.p_number(1.0), "1"),
        (wording.p_number(None), "?"),
        (wording.number(2.12345), "2.123"),
        (wording.number(-1.5), "−1.5"),
        (wording.significant(4.5), "4.500"),
        (wording.significant(1e30), "1.000e+30"),
        (wording.significant(None), "∞"),
        (wording.plus_minus(1.0, 0.125), "1.000 ± 0.1250"),
        (wording.plus_minus(1.0, None), "1.000"),
        (wording.memory(512.4), "512 MiB"),
        (wording.memory(2150.0), "2.1 GiB"),
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
    assert (got.replace(GLUE, " ") if isinstance(got, str) else got) == want


def test_number_error_and_unit_stay_on_one_line() -> None:
    assert " " not in wording.percent(0.62, 0.03) + wording.points(0.62, 0.03) + wording.p_value(0.02)
