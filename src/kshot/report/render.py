"""Contents -> page: one template, filled in and written in one rename."""

from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from kshot.report import wording
from kshot.report.contents import OUTCOMES, TUNED_MIXTURE, Contents, Missing
from kshot.report.figures import PLOTLY_INSTALLED, draw_figures
from kshot.report.read import read_contents
from kshot.report.verdict import judge
from kshot.run_folder import REPORT, RunFolder, Stage

ROWS_SHOWN = 200  # of the test answers, and of the selected rows
LEFT_OUT_SHOWN = 20  # avoided rows, and near-copies
GROUPS_SHOWN = 5
TEXT_LENGTH = 240  # characters of a request, response or answer
_STAGE_TITLES: Mapping[Stage, str] = {
    "screening": "ordering the bank",
    "experts": "scoring the adapters",
    "data": "selecting rows",
    "single": "tuning the best single expert",
    "expert": "tuning the mixture",
    "eval": "testing",
}


def write_report(run: RunFolder) -> Path:
    """Write `report.html`, one self-contained page, from what the run folder holds.

    A run that is not finished gives a page that says what is missing and which command makes it.

    Returns:
        Path of the page.

    Raises:
        RunFolderError: The folder holds no run, a file of it is damaged, or it cannot be written.
    """
    run.write_text(REPORT, render_page(read_contents(run)))
    return run.path(REPORT)


def render_page(contents: Contents, *, plotly_installed: bool = PLOTLY_INSTALLED) -> str:
    """Return the page as HTML.

    Args:
        contents: The run.
        plotly_installed: Whether pictures can be drawn.
    """
    evaluation = None if isinstance(contents.evaluation, Missing) else contents.evaluation
    return (
        _template_environment()
        .from_string(_resource("template.html.j2"))
        .render(
            contents=contents,
            style=Markup(_resource("style.css")),
            figures=draw_figures(contents, plotly_installed=plotly_installed),
            verdict=judge(evaluation) if evaluation else None,
            outcomes=_count_outcomes(contents),
            avoided=_count_reasons(contents),
            stage_titles=_STAGE_TITLES,
            tuned_mixture=TUNED_MIXTURE,
            rows_shown=ROWS_SHOWN,
            left_out_shown=LEFT_OUT_SHOWN,
            groups_shown=GROUPS_SHOWN,
        )
    )


def _resource(name: str) -> str:
    return files("kshot.report").joinpath(name).read_text(encoding="utf-8")


def _template_environment() -> Environment:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": wording.percent,
        "signed": wording.signed,
        "p_number": wording.p_number,
        "number": wording.number,
        "significant": wording.significant,
        "plural": wording.plural,
        "duration": wording.duration,
        "flat": wording.flat,
        "clip": lambda text: wording.clip(text, TEXT_LENGTH),
    }
    environment.tests["missing"] = lambda part: isinstance(part, Missing)
    return environment


def _count_outcomes(contents: Contents) -> Mapping[str, int]:
    if isinstance(contents.evaluation, Missing):
        return {}
    counts = Counter(row.outcome for row in contents.evaluation.rows)
    return {outcome: counts[outcome] for outcome in OUTCOMES}


def _count_reasons(contents: Contents) -> Mapping[str, int]:
    """Count the avoided rows by kind of reason; that a row matches a shot names the shot."""
    if isinstance(contents.data, Missing):
        return {}
    kinds = {
        "shot ": "asks what a shot asks",
        "test row ": "asks what a test row asks",
        "row of ": "asks what a row of a benchmark asks",
    }
    reasons = (
        next((words for start, words in kinds.items() if reason.startswith(start)), reason)
        for reason in contents.data.avoided.values()
    )
    return dict(Counter(reasons).most_common())
