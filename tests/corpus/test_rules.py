"""Quotas and limits, one rule at a time."""

from kshot.corpus.rules import LengthLimits, SourceQuota, refusal


def test_a_source_gives_no_more_than_its_share() -> None:
    quota = SourceQuota("aabba".__getitem__, 2)
    for row in (0, 1):
        assert quota.refuse(row) is None
        quota.keep(row)
    assert quota.refuse(4) == "source_full"
    assert quota.refuse(2) is None


def test_rows_that_are_not_kept_do_not_count() -> None:
    quota = SourceQuota("aa".__getitem__, 1)
    assert quota.refuse(0) is None
    assert quota.refuse(1) is None


def test_both_ends_of_a_length_are_allowed() -> None:
    limits = LengthLimits([4, 5, 9, 10].__getitem__, 5, 9)
    assert [limits.refuse(row) for row in range(4)] == ["too_short", None, None, "too_long"]


def test_the_first_rule_gives_the_reason_and_later_ones_are_not_asked() -> None:
    full = SourceQuota(lambda row: "a", 0)
    assert refusal([full, LengthLimits({}.__getitem__, 1, 2)], 7) == "source_full"
    assert refusal([], 7) is None
