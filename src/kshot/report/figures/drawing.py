"""What every picture shares: colours for white and for black, a quiet layout, text that stays text."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from typing import Any

PLOTLY_INSTALLED = find_spec("plotly") is not None

ACCENT = "#3b7ddd"
QUIET = "#8b95a3"
GOOD = "#2f9e5b"
BAD = "#d9534a"
WARM = "#e0802a"
EXPERT_COLOURS = (
    "#3b7ddd", "#e0802a", "#2f9e5b", "#b857b0", "#c9a21a", "#1f9e9e", "#d9534a", "#7d68d6",
)  # fmt: skip
# Similarity is near zero for most pairs: the page shows through there, dark or light.
SCALE = ((0.0, "rgba(59,125,221,0.06)"), (0.5, "rgba(59,125,221,0.55)"), (1.0, "rgba(224,128,42,1)"))
LABEL_LENGTH = 32  # characters of a name on an axis
HOVER_WIDTH = 46  # characters of a line: a label must fit a phone
HOVER_LENGTH = 220
_DARK, _PALE = "#20262e", "#f4f6f8"


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture.

    Attributes:
        id: Of its place in the page.
        alt: What it shows, in words.
        height: In pixels.
        spec: `data` and `layout` as Plotly writes them; None where Plotly is not installed.
    """

    id: str
    alt: str
    height: int
    spec: str | None


def draw(
    figure_id: str, alt: str, traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], height: int
) -> Figure:
    """Draw a picture, or only its words where Plotly is not installed."""
    if not PLOTLY_INSTALLED:
        return Figure(figure_id, alt, height, None)
    import plotly.graph_objects as go

    figure = go.Figure(data=list(traces), layout=dict(layout))
    figure.update_layout(
        template="none",
        dragmode=False,  # a finger on a phone scrolls the page
        margin={"l": 10, "r": 16, "t": 10, "b": 10},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, -apple-system, Segoe UI, sans-serif", "size": 12},
        hoverlabel={
            "bgcolor": _DARK,
            "bordercolor": _DARK,
            "font": {"color": _PALE, "size": 12},
            "align": "left",
            "namelength": -1,
        },
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "yref": "paper"},
        height=height,
    )
    gap = {"ticks": "outside", "ticklen": 5, "tickcolor": "rgba(0,0,0,0)"}  # between labels and marks
    axis = {"automargin": True, "zeroline": False, "showline": False, **gap}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return Figure(figure_id, alt, height, str(figure.to_json()))


def label(name: str) -> str:
    """Return a name for an axis or legend; Plotly reads a little HTML, so it is escaped."""
    return escape(name if len(name) <= LABEL_LENGTH else f"{name[: LABEL_LENGTH - 1]}…")


def wrapped(text: str, limit: int = HOVER_LENGTH) -> str:
    """Return a text of users for a hover label, in lines."""
    flat = " ".join(text.split())
    flat = flat if len(flat) <= limit else f"{flat[: limit - 1]}…"
    return "<br>".join(escape(line) for line in textwrap.wrap(flat, HOVER_WIDTH))


def title(text: str) -> dict[str, Any]:
    """Return the title of an axis."""
    return {"text": text, "standoff": 8}
