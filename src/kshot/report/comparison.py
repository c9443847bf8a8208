"""Several runs side by side: their arms, what differs in their settings, what they cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kshot.atomic import write_text
from kshot.errors import ConfigError
from kshot.evaluation.statistics import mcnemar
from kshot.report.contents import Contents
from kshot.report.figures.comparison import draw_runs
from kshot.report.page import fill_page
from kshot.report.parts.evaluation import TUNED_MIXTURE, Arm, Evaluation
from kshot.report.parts.reading import Missing
from kshot.report.read import read_contents
from kshot.report.verdict import Verdict, judge, paired_difference
from kshot.report.wording import flat
from kshot.run_folder import RunFolder

COMPARISON = "comparison.html"


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        name: Of its folder, with as much of the path as tells the runs apart.
        contents: What it holds.
    """

    name: str
    contents: Contents

    @property
    def evaluation(self) -> Evaluation | None:
        """The arms, if they are measured."""
        return None if isinstance(self.contents.evaluation, Missing) else self.contents.evaluation

    @property
    def verdict(self) -> Verdict | None:
        """Whether it worked, if that is measured."""
        return judge(self.evaluation) if self.evaluation else None

    @property
    def num_tokens(self) -> int | None:
        """Tokens trained on."""
        training = self.contents.training
        return None if isinstance(training, Missing) else sum(one.num_tokens for one in training)

    def arm(self, key: str) -> Arm | None:
        """Return an arm, if it is measured."""
        arms = self.evaluation.arms if self.evaluation else ()
        return next((arm for arm in arms if arm.key == key), None)


@dataclass(frozen=True, slots=True)
class AgainstFirst:
    """The tuned mixture of a run against that of the first, on the same test rows.

    Attributes:
        name: Of the run.
        difference: Of the accuracies, this run minus the first.
        stderr: Of the difference, paired; None for a single row.
        p_value: Of the exact McNemar test.
    """

    name: str
    difference: float
    stderr: float | None
    p_value: float


def write_comparison(runs: Sequence[RunFolder], out: Path) -> Path:
    """Write one self-contained page that compares runs.

    Args:
        runs: Two or more, finished or not.
        out: The page.

    Returns:
        `out`.

    Raises:
        ConfigError: There are fewer than two runs, or one is named twice.
        RunFolderError: A folder holds no run, a file of it is damaged, or the page cannot be written.
    """
    roots = [run.root.resolve() for run in runs]
    if len(set(roots)) < max(2, len(roots)):
        raise ConfigError(
            f"expected two or more different run folders to compare, got {', '.join(map(str, roots))}: "
            "name each once"
        )
    names = short_names(roots)
    compared = [ComparedRun(name, read_contents(run)) for name, run in zip(names, runs, strict=True)]
    write_text(out, render_comparison(compared))
    return out


def render_comparison(runs: Sequence[ComparedRun]) -> str:
    """Return the page as HTML."""
    measured = [(run.name, run.evaluation) for run in runs if run.evaluation]
    figure = draw_runs(measured) if measured else None
    titles = {arm.key: arm.title for _, evaluation in measured for arm in evaluation.arms}
    values = {
        "runs": runs,
        "titles": titles,
        "tuned_mixture": TUNED_MIXTURE,
        "against_first": against_first(runs),
        "differing": differing_settings(runs),
        "environments": differing_values([flat(run.contents.environment) for run in runs]),
    }
    return fill_page("comparison.html.j2", {figure.id: figure} if figure else {}, {}, values)


def short_names(roots: Sequence[Path]) -> list[str]:
    """Return the end of each path, as many folders of it as tell all apart."""
    longest = max(len(root.parts) for root in roots)
    for depth in range(1, longest):
        names = [str(Path(*root.parts[-depth:])) for root in roots]
        if len(set(names)) == len(names):
            return names
    return [str(root) for root in roots]


def against_first(runs: Sequence[ComparedRun]) -> list[AgainstFirst]:
    """Return how the tuned mixtures differ from that of the first run, where the test rows are the same."""
    first, *others = runs
    if first.evaluation is None:
        return []
    right = first.evaluation.correct(TUNED_MIXTURE)
    found = []
    for run in others:
        if run.evaluation is not None and _asked(run.evaluation) == _asked(first.evaluation):
            own = run.evaluation.correct(TUNED_MIXTURE)
            difference, stderr = paired_difference(own, right)
            found.append(AgainstFirst(run.name, difference, stderr, mcnemar(own, right)))
    return found


def differing_settings(runs: Sequence[ComparedRun]) -> dict[str, list[object]]:
    """Return the settings that are not the same in all runs, by name, a value each."""
    return differing_values([flat(yaml.safe_load(run.contents.config)) for run in runs])


def differing_values(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[object]]:
    """Return what is not the same in all mappings, by key, a value each; None where one lacks it."""
    keys = dict.fromkeys(key for one in settings for key in one)
    rows = {key: [one.get(key) for one in settings] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}


def _asked(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    return [(row.id, row.request, row.gold) for row in evaluation.rows]
