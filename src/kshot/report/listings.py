"""The listings of a report: test answers, kept rows, rows left out."""

from collections import Counter

from kshot.report.listing import Chip, Detail, Entry, Listing, Select, options_of
from kshot.report.parts.data import SelectedData
from kshot.report.parts.evaluation import OUTCOMES, Evaluation, TestRow

MAX_OPTIONS = 60  # of a filter: a longer menu is no help, and search finds the rest
_KINDS = {  # how a reason begins that names what the row collided with
    "shot ": "asks what a shot asks",
    "test row ": "asks what a test row asks",
    "row of ": "asks what a row of a benchmark asks",
}
NEAR_COPY = "near-copy of a kept row"


def list_answers(evaluation: Evaluation) -> Listing:
    """List every test row with the answer of each arm."""
    arms = [arm.short for arm in evaluation.arms]
    counts = Counter(row.outcome for row in evaluation.rows)
    cases = tuple((outcome, f"{outcome} ({counts[outcome]:,})") for outcome in OUTCOMES)
    return Listing(
        id="answers-list",
        noun="test row",
        entries=tuple(_answered(place, row, evaluation) for place, row in enumerate(evaluation.rows, 1)),
        selects=(
            Select("case", (("", "every case"), *cases)),
            Select("right by", options_of("right-", arms, "any arm")),
            Select("wrong by", options_of("wrong-", arms, "any arm")),
        ),
        total=len(evaluation.rows),
        file="eval/*/predictions.json",
    )


def list_kept(data: SelectedData) -> Listing:
    """List the kept rows, the most relevant first."""
    sources, shots = list(data.sources), list(dict.fromkeys(row.nearest_shot for row in data.rows))
    entries = []
    for row in data.rows:
        tags = {f"shot-{shots.index(row.nearest_shot)}"}
        if row.source in data.sources:
            tags.add(f"source-{sources.index(row.source)}")
        details = [Detail("rationale", row.rationale)] if row.rationale else []
        entries.append(
            Entry(
                lead=f"{row.relevance:.3f}",
                text=row.request,
                chips=(Chip(row.source), Chip(f"nearest shot {row.nearest_shot}")),
                details=(*details, Detail("response", row.response), Detail("id", row.id)),
                tags=frozenset(tags),
            )
        )
    return Listing(
        id="kept-list",
        noun="kept row",
        entries=tuple(entries),
        selects=(
            Select("source", options_of("source-", sources[:MAX_OPTIONS], "every source")),
            Select("nearest shot", options_of("shot-", shots[:MAX_OPTIONS], "every shot")),
        ),
        total=len(data.rows),
        file="data/selected.jsonl",
    )


def list_left_out(data: SelectedData) -> Listing:
    """List the rows left out for a reason of their own."""
    kinds = list(count_reasons(data))
    entries = [
        Entry("", id_, (Chip(_in_words(reason)),), (), frozenset({f"reason-{kinds.index(_kind(reason))}"}))
        for id_, reason in data.avoided.items()
    ]
    for copy in data.dropped:
        words = f"{copy.reason.replace('_', '-')} of {copy.kept}, cosine {copy.cosine:.3f}"
        tags = frozenset({f"reason-{kinds.index(NEAR_COPY)}"})
        entries.append(Entry("", copy.id, (Chip(words),), (), tags))
    return Listing(
        id="left-out-list",
        noun="row",
        entries=tuple(entries),
        selects=(Select("reason", options_of("reason-", kinds, "every reason")),),
        total=len(entries),
        file="data/dropped.jsonl",
    )


def count_reasons(data: SelectedData) -> dict[str, int]:
    """Count the rows left out by kind of reason; that a row matches a shot names the shot."""
    counts = Counter(_kind(reason) for reason in data.avoided.values())
    found = dict(counts.most_common())
    return found | ({NEAR_COPY: len(data.dropped)} if data.dropped else {})


def _kind(reason: str) -> str:
    return next((words for start, words in _KINDS.items() if reason.startswith(start)), reason)


def _in_words(reason: str) -> str:
    return f"asks the same as {reason}" if reason.startswith(tuple(_KINDS)) else reason


def _answered(place: int, row: TestRow, evaluation: Evaluation) -> Entry:
    chips, details, tags = [], [Detail("expected", row.gold)], {str(row.outcome)}
    for number, (arm, answer) in enumerate(zip(evaluation.arms, row.answers, strict=True)):
        verdict, mark = ("right", "✓") if answer.correct else ("wrong", "✗")
        chips.append(Chip(f"{mark} {arm.short}", verdict))
        details.append(Detail(f"{arm.title}: {verdict}", answer.text or "(nothing)", verdict))
        tags.add(f"{verdict}-{number}")
    return Entry(str(place), row.request, tuple(chips), (*details, Detail("id", row.id)), frozenset(tags))
