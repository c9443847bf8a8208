"""How the experts were chosen: every adapter's scores, how alike they are, the groups there could be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kshot.report.parts.reading import Missing, missing, parsing, pick
from kshot.run_folder import SCORES, SELECTION, SIMILARITY, RunFolder


@dataclass(frozen=True, slots=True)
class RankedAdapter:
    """An adapter's scores on the shots and its ranks; an infinite perplexity or NLL is None.

    `answer_first_ppl` is None as well where no shot has a rationale.

    `loss`, its `stderr` and `near_tie`, that the next adapter may be as good, are of the method `robust`
    alone.
    """

    name: str
    accuracy: float
    reasoning_ppl: float | None
    mean_nll: float | None
    rank_ppl: float
    rank_accuracy: float
    rank_sum: float
    answer_first_ppl: float | None = None
    loss: float | None = None
    stderr: float | None = None
    near_tie: bool | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Candidates that could have been the experts; in every number, less is better.

    `similarity_rank` is of the method `paper` alone; `best_of`, the mean over the shots of the best member's
    loss, and `near_tie` of `robust`.
    """

    members: tuple[str, ...]
    quality: float
    similarity: float
    total: float
    similarity_rank: float | None = None
    best_of: float | None = None
    near_tie: bool | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """How the experts were chosen.

    Attributes:
        experts: Best first.
        best_single: First of the ranking.
        method: How adapters were ranked and groups weighed: `paper`, `balanced` or `robust`.
        why: The sentences that say why this group won.
        candidates: Names that groups were formed from.
        ranking: Every adapter, best first.
        groups: The best groups, best first.
        num_groups: Of all.
        excluded: Names left out by request.
        failures: For each adapter that could not be scored why.
        flagged: For each adapter that may have seen the task how.
        without_flagged: The experts that would be chosen without those; empty where nothing is flagged.
        num_shots: Shots that every adapter was scored on.
        num_rationales: How many of them have a rationale.
        num_tokens: Target tokens scored, over all adapters; None where they were not counted.
        similarity: Cosine of every two adapters, by name.
    """

    experts: tuple[str, ...]
    best_single: str
    method: str
    why: str
    candidates: tuple[str, ...]
    ranking: tuple[RankedAdapter, ...]
    groups: tuple[Group, ...]
    num_groups: int
    excluded: tuple[str, ...]
    failures: Mapping[str, str]
    flagged: Mapping[str, str]
    without_flagged: tuple[str, ...]
    num_shots: int
    num_rationales: int
    num_tokens: int | None
    similarity: Mapping[str, Mapping[str, float]]

    def mark(self, name: str) -> str:
        """Return `expert`, `candidate` or nothing."""
        return "expert" if name in self.experts else "candidate" if name in self.candidates else ""


def read_selection(run: RunFolder) -> Selection | Missing:
    """Read the selection.

    Raises:
        RunFolderError: A file is damaged or lacks something.
    """
    path = run.path("experts", SELECTION)
    if not path.is_file():
        return missing(run, "The adapters are not scored yet", "select")
    chosen, scored = run.read_json("experts", SELECTION), run.read_json("experts", SCORES)
    cosines = run.read_json("experts", SIMILARITY)
    with parsing(path.parent):
        scores = scored["scores"] if isinstance(scored, dict) else scored
        return Selection(
            experts=tuple(chosen["experts"]),
            best_single=chosen["best_single"],
            method=chosen.get("method", "paper"),
            why=chosen["why"],
            candidates=tuple(one["name"] for one in chosen["candidates"]),
            ranking=tuple(pick(RankedAdapter, one) for one in chosen["ranking"]),
            groups=tuple(pick(Group, one | {"members": tuple(one["members"])}) for one in chosen["groups"]),
            num_groups=chosen["num_groups"],
            excluded=tuple(chosen["excluded"]),
            failures=chosen.get("failures", {}),
            flagged=chosen.get("flagged", {}),
            without_flagged=tuple((chosen.get("without_flagged") or {"experts": ()})["experts"]),
            num_shots=scores[0]["n"],
            num_rationales=scores[0]["num_rationales"],
            num_tokens=_num_tokens(scores),
            similarity={
                name: dict(zip(cosines["names"], row, strict=True))
                for name, row in zip(cosines["names"], cosines["matrix"], strict=True)
            },
        )


def _num_tokens(scores: list[dict[str, Any]]) -> int | None:
    counts = [one.get("num_tokens") for one in scores]
    return None if None in counts else sum(count for count in counts if count is not None)
