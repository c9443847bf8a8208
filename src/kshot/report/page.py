"""A page from its template: style, script, packed rows and pictures in one file that fetches nothing."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kshot.report import wording
from kshot.report.figures.drawing import EXPERT_COLOURS, Figure
from kshot.report.listing import FIRST_PAGE, Listing
from kshot.report.packing import pack_page, packed_plotly
from kshot.report.parts.reading import Missing

TEXT_LENGTH = 600  # characters of a text in the page itself; its script has more of it


def fill_page(
    template: str, figures: Mapping[str, Figure], listings: Mapping[str, Listing], values: Mapping[str, Any]
) -> str:
    """Return a page as HTML.

    Args:
        template: File name.
        figures: By id.
        listings: By id.
        values: What else the template names.
    """
    drawn = any(figure.spec is not None for figure in figures.values())
    html = (
        _environment()
        .get_template(template)
        .render(
            values,
            figures=figures,
            listings=listings,
            first_page=FIRST_PAGE,
            expert_colours=EXPERT_COLOURS,
            style=_resource("style.css"),
            script=_resource("page.js"),
            packed_data=pack_page(list(figures.values()), list(listings.values())),
            packed_plotly=packed_plotly() if drawn else "",
        )
    )
    # JSON can hold half a surrogate pair, a file cannot
    return html.encode("utf-8", "replace").decode("utf-8")


def _resource(name: str) -> Markup:
    return Markup(files("kshot.report").joinpath("templates", name).read_text(encoding="utf-8"))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("kshot.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": wording.percent,
        "signed": wording.signed,
        "p_number": wording.p_number,
        "number": wording.number,
        "significant": wording.significant,
        "plus_minus": wording.plus_minus,
        "plural": wording.plural,
        "duration": wording.duration,
        "memory": wording.memory,
        "flat": wording.flat,
        "clip": lambda text: wording.clip(text, TEXT_LENGTH),
    }
    environment.tests["missing"] = lambda part: isinstance(part, Missing)
    return environment
