"""What is drawn of a selection."""

from io import StringIO

from rich.console import Console

from kshot.terminal import data_table, result_table, selection_table

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


SUMMARY = {
    "selected": 3,
    "pool_rows": 40,
    "by_source": [
        {"source": "a[b]", "rows": 2, "share": 0.6667, "mean_relevance": 0.8123, "example": "why [x]? -> y"},
        {"source": "c", "rows": 1, "share": 0.3333, "mean_relevance": 0.5, "example": "how -> so"},
    ],
    "counts": {"near_copy": 5, "exact_match": 2, "source_full": 1},
    "without_rationale": 0,
    "without_vector": 4,
}


def test_selected_rows_by_source_and_why_others_were_left_out() -> None:
    console = Console(record=True, width=200, file=StringIO())
    console.print(data_table(SUMMARY))
    text = console.export_text()
    assert "3 of 40 open rows" in text
    row = next(line for line in text.splitlines() if "a[b]" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "a[b]",
        "2",
        "67%",
        "0.812",
        "why [x]? -> y",
    ]
    assert "5 near-copies of kept rows" in text
    assert "2 ask what a shot, a test row or a benchmark asks" in text
    assert "1 of sources that gave their share" in text
    assert "4 without a vector" in text
    assert "rationale" not in text


ARMS = [
    {"arm": arm, "title": title, "accuracy": 0.5, "stderr": None, "n": 2, "p_against_tuned_mixture": None}
    for arm, title in (("base", "base model"), ("tuned_mixture", "tuned mixture"))
]


def _results_drawn(choice: dict[str, str] | None) -> str:
    console = Console(record=True, width=200, file=StringIO())
    console.print(result_table(ARMS, choice))
    return console.export_text()


def test_the_chosen_arm_is_marked_with_the_reason_below() -> None:
    text = _results_drawn({"chosen": "base", "reason": "by 0.2 ± 0.1 nats [a token]"})
    assert "base model * " in text
    assert "tuned mixture * " not in text
    assert "* handed over: by 0.2 ± 0.1 nats [a token]" in text


def test_no_arm_is_marked_before_a_choice() -> None:
    text = _results_drawn(None)
    assert "tuned mixture" in text
    assert "*" not in text
