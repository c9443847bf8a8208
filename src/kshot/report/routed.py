"""The answers coloured by expert: what the page writes of each token.

E choices of a router
"""

from dataclasses import dataclass

from kshot.report.parts.evaluation import Evaluation
from kshot.report.parts.routing import ExpertUse, RoutedAnswer, RoutedToken

MAX_TOKENS = 4_000  # in the page, with their gates half a megabyte
_GATES_NAMED = 3  # of a token; with two experts a token the rest are small


@dataclass(frozen=True, slots=True)
class ColouredToken:
    """A token: its text, the place of its expert, how strong the colour is in [0, 1], its gates in words."""

    text: str
    choice: int
    weight: str
    gates: str


@dataclass(frozen=True, slots=True)
class ColouredAnswer:
    """A question and its answer, token by token."""

    request: str
    tokens: tuple[ColouredToken, ...]


def coloured_answers(use: ExpertUse, evaluation: Evaluation) -> list[ColouredAnswer]:
    """Return the first answers, as many as have `MAX_TOKENS` tokens together.

    A token has the colour of the expert whose gate lies farthest above its mean over these tokens: with gates
    as their mean over modules, the expert that is used most overall would else colour nearly all of them.
    """
    answers = _first(use.answers)
    tokens = [token for answer in answers for token in answer.tokens]
    if not tokens:
        return [ColouredAnswer(_request(answer, evaluation), ()) for answer in answers]
    mean_E = [sum(column) / len(tokens) for column in zip(*(token.gates_E for token in tokens), strict=True)]
    strongest = max(_lift(token, mean_E)[0] for token in tokens) or 1.0
    return [
        ColouredAnswer(
            _request(answer, evaluation),
            tuple(_coloured(token, use.choices, mean_E, strongest) for token in answer.tokens),
        )
        for answer in answers
    ]


def _first(answers: tuple[RoutedAnswer, ...]) -> list[RoutedAnswer]:
    found, left = [], MAX_TOKENS
    for answer in answers:
        left -= len(answer.tokens)
        if left < 0:
            break
        found.append(answer)
    return found


def _request(answer: RoutedAnswer, evaluation: Evaluation) -> str:
    return next((row.request for row in evaluation.rows if row.id == answer.id), answer.id)


def _lift(token: RoutedToken, mean_E: list[float]) -> tuple[float, int]:
    """Return by how much a gate lies above its mean at most, and whose it is; the first of equals."""
    lifts = [gate - mean for gate, mean in zip(token.gates_E, mean_E, strict=True)]
    choice = max(range(len(lifts)), key=lambda place: (lifts[place], -place))
    return lifts[choice], choice


def _coloured(
    token: RoutedToken, choices: tuple[str, ...], mean_E: list[float], strongest: float
) -> ColouredToken:
    lift, choice = _lift(token, mean_E)
    largest = sorted(range(len(choices)), key=lambda place: (-token.gates_E[place], place))[:_GATES_NAMED]
    gates = ", ".join(f"{choices[place]} {token.gates_E[place]:.2f}" for place in largest)
    weight = 1.0 if len(choices) == 1 else max(0.0, lift / strongest)
    return ColouredToken(token.text, choice, f"{weight:.2f}", gates)
