"""The pictures: Plotly figures as pieces of HTML; a table of the report says the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from typing import Any

from markupsafe import Markup

from kshot.report.contents import Contents, Missing, Selection, Training

PLOTLY_INSTALLED = find_spec("plotly") is not None
NO_PLOTLY = Markup("<p class='hint'>pip install 'kshot[report]' for the pictures</p>")

MAX_ADAPTERS = 60  # in the heat map, best ranked first: more cannot be read
LABEL_LENGTH = 26
_COLOURS = ("#e08214", "#3b82f6")  # readable on white and on black
_CONFIG = {"displayModeBar": False, "responsive": True}


@dataclass(frozen=True, slots=True)
class Figures:
    """The pictures, each a piece of HTML; empty where there is nothing to show.

    Attributes:
        script: plotly.js, once, where any picture needs it.
        similarity: How alike the adapters are.
        losses: Training loss, step by step.
    """

    script: Markup
    similarity: Markup
    losses: Markup


def draw_figures(contents: Contents, *, plotly_installed: bool = PLOTLY_INSTALLED) -> Figures:
    """Draw what the run has data for.

    Args:
        contents: The run.
        plotly_installed: Without it each picture is one line that names the extra to install.
    """
    selection = None if isinstance(contents.selection, Missing) else contents.selection
    training = () if isinstance(contents.training, Missing) else contents.training
    if not plotly_installed:
        return Figures(Markup(), NO_PLOTLY if selection else Markup(), NO_PLOTLY if training else Markup())
    script = Markup(f"<script>{_plotly_js()}</script>") if selection or training else Markup()
    return Figures(
        script=script,
        similarity=_similarity(selection) if selection else Markup(),
        losses=_losses(training) if training else Markup(),
    )


def _similarity(selection: Selection) -> Markup:
    names = [adapter.name for adapter in selection.ranking[:MAX_ADAPTERS]]
    labels = [_label(rank, name, selection.mark(name)) for rank, name in enumerate(names, start=1)]
    cosines = [
        [None if one == other else selection.similarity[one][other] for other in names] for one in names
    ]
    trace = {
        "type": "heatmap",
        "x": labels,
        "y": labels,
        "z": cosines,
        "colorscale": "Viridis",
        "xgap": 1,
        "ygap": 1,
        "hoverongaps": False,
        "hovertemplate": "%{y} and %{x}<br>cosine %{z:.3f}<extra></extra>",
        "colorbar": {
            "orientation": "h",  # below, since a phone has no room beside
            "thickness": 10,
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
        },
    }
    ranks = [str(rank) for rank in range(1, len(names) + 1)]  # names beside the rows alone: phones are narrow
    axis = {"type": "category", "tickfont": {"size": 10}, "automargin": True, "showgrid": False}
    layout = {
        "xaxis": axis | {"tickvals": labels, "ticktext": ranks, "tickangle": 0},
        "yaxis": axis | {"autorange": "reversed", "dtick": 1},
        "height": 125 + 18 * len(names),
    }
    return _draw("similarity-figure", [trace], layout)


def _losses(training: Sequence[Training]) -> Markup:
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(one.losses) < 40 else "lines",
            "name": one.title,
            "x": list(range(1, len(one.losses) + 1)),
            "y": list(one.losses),
            "line": {"color": colour, "width": 2, "dash": dash},
            "hovertemplate": "step %{x}: %{y:.3f}",
        }
        for one, colour, dash in zip(training, _COLOURS, ("dot", "solid"), strict=False)
    ]
    layout = {
        "xaxis": {"title": {"text": "optimiser step"}, "automargin": True, "zeroline": False},
        "yaxis": {"title": {"text": "loss, nats a token"}, "automargin": True, "rangemode": "tozero"},
        "hovermode": "x unified",
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "height": 340,
    }
    return _draw("loss-figure", traces, layout)


def _draw(div_id: str, traces: list[dict[str, Any]], layout: dict[str, Any]) -> Markup:
    import plotly.graph_objects as go

    figure = go.Figure(data=traces, layout=layout)
    figure.update_layout(
        template="none",
        dragmode=False,  # a finger on a phone scrolls the page
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12},
    )
    html = figure.to_html(
        full_html=False, include_plotlyjs=False, include_mathjax=False, div_id=div_id, config=_CONFIG
    )
    return Markup(html)  # plotly escapes <, > and / in its data


def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _label(rank: int, name: str, mark: str) -> str:
    """Return an axis label, unique by its rank; Plotly reads a little HTML, so names are escaped."""
    short = name if len(name) <= LABEL_LENGTH else f"{name[: LABEL_LENGTH - 1]}…"
    return f"{rank} {escape(short)}" + {"expert": " ●", "candidate": " ○"}.get(mark, "")
