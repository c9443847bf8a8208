"""What is drawn of a selection."""

from io import StringIO

from rich.console import Console

from kshot.terminal import selection_table

RANKED = {
    "accuracy": 0.5,
    "reasoning_ppl": 2.0,
    "answer_first_ppl": None,
    "mean_nll": 0.7,
    "rank_ppl": 1.0,
    "rank_accuracy": 1.5,
}
SELECTION = {
    "method": "paper",
    "experts": ["good"],
    "candidates": [{"name": "good"}, {"name": "fair"}],
    "ranking": [{"name": "good", **RANKED}, {"name": "fair", **RANKED}],
    "failures": {},
    "flagged": {},
    "without_flagged": None,
}


def _drawn(selection: dict[str, object]) -> str:
    console = Console(record=True, width=200, file=StringIO())
    console.print(selection_table(selection))
    return console.export_text()


def test_failures_and_flagged_adapters_stand_below_the_table() -> None:
    text = _drawn(
        SELECTION
        | {
            "failures": {"torn": "expected [whole] safetensors"},
            "flagged": {"good": "trained on 2 of the shots"},
            "without_flagged": {"experts": ["fair"]},
        }
    )
    assert "torn could not be scored: expected [whole] safetensors" in text
    assert "good may have seen this task: trained on 2 of the shots" in text
    assert "without these the experts would be fair" in text
    assert "too few" in _drawn(SELECTION | {"flagged": {"good": "x"}})


def test_nothing_stands_below_without_reason() -> None:
    text = _drawn(SELECTION)
    assert "good" in text
    assert "may have seen" not in text


def test_both_orders_of_the_rationale_are_shown_where_there_is_one() -> None:
    titles = [
        [column.header for column in selection_table(one).columns]
        for one in (SELECTION, SELECTION | {"ranking": [RANKED | {"name": "a", "answer_first_ppl": 3.25}]})
    ]
    assert ["answer first" in one for one in titles] == [False, True]
