"""Which experts the tuned mixture used on the test answers: by layer and by token.

E choices of a router
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kshot.report.parts.evaluation import TUNED_MIXTURE
from kshot.report.parts.reading import Missing, parsing
from kshot.run_folder import TOKEN_EXPERTS, RunFolder


@dataclass(frozen=True, slots=True)
class RoutedToken:
    """A token of an answer and the mean gate of each choice, over the modules, that produced it."""

    text: str
    gates_E: tuple[float, ...]  # noqa: N815 - the suffix is its shape


@dataclass(frozen=True, slots=True)
class RoutedAnswer:
    """An answer of the tuned mixture, token by token."""

    id: str
    tokens: tuple[RoutedToken, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """Mean gate of each choice in one layer of the base, over its modules and the answers' tokens."""

    name: str
    gates_E: tuple[float, ...]  # noqa: N815 - the suffix is its shape


@dataclass(frozen=True, slots=True)
class ExpertUse:
    """Which experts were used.

    Attributes:
        choices: Names of the experts, then that of the null expert if there is one.
        layers: From the input of the base to its output.
        answers: The first test answers.
        num_answers: That the layers were measured on.
    """

    choices: tuple[str, ...]
    layers: tuple[Layer, ...]
    answers: tuple[RoutedAnswer, ...]
    num_answers: int

    @property
    def shares(self) -> dict[str, float]:
        """Mean gate of each choice over layers."""
        columns = zip(*(layer.gates_E for layer in self.layers), strict=True)
        return dict(zip(self.choices, map(_mean, columns), strict=False))


def read_expert_use(run: RunFolder) -> ExpertUse | Missing:
    """Read which experts were used.

    Raises:
        RunFolderError: The file is damaged or lacks something.
    """
    path = run.path("eval", TUNED_MIXTURE, TOKEN_EXPERTS)
    if not path.is_file():
        return Missing("This run has no record of which expert served which token")
    found = run.read_json("eval", TUNED_MIXTURE, TOKEN_EXPERTS)
    with parsing(path):
        layers = tuple(Layer(one["layer"], tuple(one["gates"])) for one in found["layers"])
        answers = tuple(
            RoutedAnswer(
                one["id"],
                tuple(
                    RoutedToken(text, tuple(gates))
                    for text, gates in zip(one["tokens"], one["gates"], strict=True)
                ),
            )
            for one in found["answers"]
        )
        return ExpertUse(tuple(found["choices"]), layers, answers, len(answers))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
