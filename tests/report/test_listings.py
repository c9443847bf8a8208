"""The listings: what can be filtered by what, and what an entry says."""

from collections.abc import Callable

from kshot.report.listings import count_reasons, list_answers, list_kept, list_left_out
from kshot.report.parts.data import SelectedData
from kshot.report.parts.evaluation import Evaluation
from kshot.report.read import read_contents
from kshot.run_folder import RunFolder

MakeRun = Callable[..., RunFolder]


def test_answers_are_tagged_by_case_and_by_arm(make_run: MakeRun) -> None:
    evaluation = read_contents(make_run()).evaluation
    assert isinstance(evaluation, Evaluation)
    listing = list_answers(evaluation)
    tags = [entry.tags for entry in listing.entries]
    assert sum("all right" in one for one in tags) == 8
    assert sum("mixed" in one for one in tags) == 24
    assert sum({"right-4", "wrong-0"} <= one for one in tags) == 24  # tuned mixture against base
    assert [label for _, label in listing.selects[0].options][1:] == [
        "mixed (24)", "all right (8)", "all wrong (8)",
    ]  # fmt: skip
    assert listing.selects[1].options[5] == ("right-4", "tuned mixture")
    assert listing.entries[39].chips[0].text == "✗ base"


def test_kept_rows_are_tagged_by_source_and_shot(make_run: MakeRun) -> None:
    data = read_contents(make_run()).data
    assert isinstance(data, SelectedData)
    listing = list_kept(data)
    assert listing.selects[0].options == (("", "every source"), ("source-0", "open-maths"))
    assert listing.entries[0].tags == {"source-0", "shot-0"}
    assert listing.entries[0].lead == "0.912"


def test_rows_left_out_are_tagged_by_kind_of_reason(make_run: MakeRun) -> None:
    data = read_contents(make_run()).data
    assert isinstance(data, SelectedData)
    assert sum(count_reasons(data).values()) == 4
    listing = list_left_out(data)
    names = dict(listing.selects[0].options)
    found = {entry.text: [names[tag] for tag in entry.tags] for entry in listing.entries}
    assert found == {
        "pool-7": ["asks what a shot asks"],
        "pool-8": ["asks what a test row asks"],
        "pool-9": ["longer than 1024"],
        "pool-5": ["near-copy of a kept row"],
    }
