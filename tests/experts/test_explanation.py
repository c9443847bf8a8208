"""What an explanation says of a search that proved nothing, of margins, and of ties."""

import pytest

from kshot.experts.explanation import Explained, explain
from kshot.experts.groups import FormedGroups, Group
from kshot.experts.ranking import RankedAdapter

RANKING = [
    RankedAdapter(name, 0.5, 2.0, None, 0.7, 1, 1, 2, loss=place / 4, stderr=0.1, near_tie=False)
    for place, name in enumerate("abcd")
]


def _robust(members: str, total: float, similarity: float, *, near_tie: bool) -> Group:
    return Group(tuple(members), total + 0.5, similarity, total, best_of=total - 0.5, near_tie=near_tie)


def _explain(*groups: Group, gap: float = 0.0, near: int = 1) -> str:
    search = "greedy_exchange" if gap else "exact"
    return explain(Explained("robust", RANKING, FormedGroups(groups, 6, near, search, gap), (), None))


def test_a_search_that_proved_nothing_tells_its_gap() -> None:
    text = _explain(_robust("ab", -1.0, 0.5, near_tie=True), gap=0.125)
    assert (
        "Not all of 6 groups were searched: none can be below the least total found by more than 0.125."
        in text
    )
    assert (
        "Chose a, b out of 4 adapters: mean loss -0.500, of the best member for each shot -1.500, midway"
        in text
    )
    assert "There was no other group." in text


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (_robust("ac", -0.75, 0.1, near_tie=False), "it loses by 0.25."),
        (_robust("ac", -0.75, 0.5, near_tie=True), "it loses by 0.25."),
        (
            _robust("ac", -1.25, 0.75, near_tie=True),
            "cannot tell the two apart, and the smaller similarity decided.",
        ),
        (_robust("ac", -1.0, 0.5, near_tie=True), "the two are equal in every term, and the names decided."),
    ],
)
def test_the_margin_to_the_runner_up(second: Group, said: str) -> None:
    winner = _robust("ab", -1.0, 0.5, near_tie=True)
    text = _explain(winner, second, near=2)
    assert f"The runner-up takes c instead of b: mean loss {second.quality:.3f}" in text
    assert said in text


def test_those_behind_the_runner_up() -> None:
    winner, second = _robust("ab", -1.0, 0.1, near_tie=True), _robust("ac", -1.25, 0.2, near_tie=True)
    third, fourth = _robust("cd", -1.125, 0.3, near_tie=True), _robust("bd", -0.5, 0.0, near_tie=False)
    text = _explain(winner, second, third, fourth, fourth, near=3)
    assert (
        "Behind it: c, d instead of a, b, 0.125 ahead but more alike (a near-tie); d instead of a, "
        "0.5 behind. Losses"
    ) in text
    assert "3 groups are within one standard error of the best, and of these the winner is the least" in text
