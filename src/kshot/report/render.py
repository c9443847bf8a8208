"""Contents -> page: one template, filled in and written in one rename."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kshot.atomic import write_text
from kshot.report.contents import Contents
from kshot.report.drawn import draw_figures
from kshot.report.headline import headline_tiles
from kshot.report.listing import Listing
from kshot.report.listings import count_reasons, list_answers, list_kept, list_left_out
from kshot.report.page import fill_page
from kshot.report.parts.evaluation import TUNED_MIXTURE, count_outcomes
from kshot.report.parts.reading import Missing
from kshot.report.read import read_contents
from kshot.report.routed import coloured_answers
from kshot.report.verdict import judge
from kshot.run_folder import REPORT, RunFolder

GROUPS_SHOWN = 5


def write_report(run: RunFolder, out: Path | None = None) -> Path:
    """Write `report.html`, one self-contained page, from what the run folder holds.

    A run that is not finished gives a page that says what is missing and which command makes it.

    Args:
        run: Finished or not.
        out: The page, in place of the one in the run folder.

    Returns:
        Path of the page.

    Raises:
        RunFolderError: The folder holds no run, a file of it is damaged, or it cannot be written.
    """
    path = run.path(REPORT) if out is None else out
    write_text(path, render_page(read_contents(run)))
    return path


def render_page(contents: Contents, *, pictures: bool = True) -> str:
    """Return the page as HTML.

    Args:
        contents: The run.
        pictures: Whether to draw them where Plotly is installed; their words stand in any case.
    """
    figures = draw_figures(contents)
    if not pictures:
        figures = {name: replace(figure, spec=None) for name, figure in figures.items()}
    listings = {listing.id: listing for listing in _listings(contents)}
    return fill_page("report.html.j2", figures, listings, _values(contents))


def _values(contents: Contents) -> Mapping[str, Any]:
    evaluation = None if isinstance(contents.evaluation, Missing) else contents.evaluation
    use = None if isinstance(contents.expert_use, Missing) else contents.expert_use
    verdict = judge(evaluation) if evaluation else None
    return {
        "contents": contents,
        "verdict": verdict,
        "tiles": headline_tiles(contents, verdict),
        "outcomes": count_outcomes(evaluation) if evaluation else {},
        "reasons": {} if isinstance(contents.data, Missing) else count_reasons(contents.data),
        "routed": coloured_answers(use, evaluation) if use and evaluation else [],
        "tuned_mixture": TUNED_MIXTURE,
        "groups_shown": GROUPS_SHOWN,
    }


def _listings(contents: Contents) -> list[Listing]:
    found = []
    if not isinstance(contents.evaluation, Missing):
        found.append(list_answers(contents.evaluation))
    if not isinstance(contents.data, Missing) and contents.data.pool_rows:
        found.append(list_kept(contents.data))
        left_out = list_left_out(contents.data)
        found += [left_out] if left_out.total else []
    return found
