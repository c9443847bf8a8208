"""Pictures of the results: the arms with their errors, the cases, the arms on the shots, the time."""

from collections.abc import Mapping, Sequence

from kshot.report.figures.drawing import ACCENT, BAD, GOOD, QUIET, Figure, draw, label, title
from kshot.report.parts.choice import Choice
from kshot.report.parts.cost import Cost
from kshot.report.parts.evaluation import TUNED_MIXTURE, Evaluation, Outcome
from kshot.report.wording import duration, percent, significant

_ROW = 34  # pixels of a line of names
_OUTCOME_COLOURS: Mapping[Outcome, str] = {"all right": GOOD, "mixed": QUIET, "all wrong": BAD}


def draw_arms(evaluation: Evaluation) -> Figure:
    """Draw the accuracy of every arm with its standard error."""
    arms = evaluation.arms
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [100 * arm.accuracy for arm in arms],
        "y": [label(arm.short) for arm in arms],
        "error_x": _whiskers([100 * (arm.stderr or 0) for arm in arms]),
        "marker": {"size": 13, "color": [ACCENT if arm.key == TUNED_MIXTURE else QUIET for arm in arms]},
        "hovertext": [
            f"<b>{label(arm.title)}</b><br>{percent(arm.accuracy, arm.stderr)}<br>"
            f"{round(arm.accuracy * arm.n):,} of {arm.n:,} right"
            for arm in arms
        ],
        "hoverinfo": "text",
        "cliponaxis": False,
        "showlegend": False,
    }
    alt = "Accuracy of each arm with one standard error. " + "; ".join(
        f"{arm.title} {percent(arm.accuracy, arm.stderr)}" for arm in arms
    )
    return draw("arms-figure", f"{alt}.", [trace], _named_rows("test rows right, %"), 74 + _ROW * len(arms))


def draw_cases(counts: Mapping[Outcome, int]) -> Figure:
    """Draw how many rows all arms have right, some, none."""
    total = sum(counts.values()) or 1
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "x": [counts[name]],
            "y": [""],
            "marker": {"color": colour},
            "hovertext": [f"{name}: {counts[name]:,} of {total:,} rows ({percent(counts[name] / total)})"],
            "hoverinfo": "text",
        }
        for name, colour in _OUTCOME_COLOURS.items()
    ]
    layout = {
        "barmode": "stack",
        "bargap": 0.1,
        "xaxis": {"title": title("test rows"), "range": [0, total]},
        "legend": {"traceorder": "normal"},
        "showlegend": True,
    }
    named = ", ".join(f"{name} {counts[name]:,}" for name in _OUTCOME_COLOURS)
    alt = f"Test rows by how the arms did: {named}"
    return draw("cases-figure", f"{alt}.", traces, layout, 144)


def draw_choice(choice: Choice) -> Figure:
    """Draw the loss of every arm on the shots it was not tuned on."""
    arms = choice.arms
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [arm.loss for arm in arms],
        "y": [label(arm.title) for arm in arms],
        "error_x": _whiskers([arm.stderr or 0 for arm in arms]),
        "marker": {"size": 13, "color": [ACCENT if arm.arm == choice.chosen else QUIET for arm in arms]},
        "hovertext": [
            f"<b>{label(arm.title)}</b><br>loss {significant(arm.loss)}"
            + (f" ± {significant(arm.stderr)}" if arm.stderr else "")
            for arm in arms
        ],
        "hoverinfo": "text",
        "showlegend": False,
    }
    alt = "Loss of each arm on shots it was not tuned on; less is better. " + "; ".join(
        f"{arm.title} {significant(arm.loss)}" for arm in arms
    )
    layout = _named_rows(f"loss on the shots left out, {choice.unit or 'nats a token'}")
    return draw("choice-figure", f"{alt}.", [trace], layout, 74 + _ROW * len(arms))


def draw_cost(cost: Cost) -> Figure:
    """Draw the wall time of every stage."""
    stages = cost.stages
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [stage.seconds for stage in stages],
        "y": [label(stage.title) for stage in stages],
        "marker": {"color": QUIET},
        "hovertext": [f"<b>{label(stage.title)}</b><br>{duration(stage.seconds)}" for stage in stages],
        "hoverinfo": "text",
        "showlegend": False,
    }
    alt = "Wall time of each stage: " + ", ".join(
        f"{stage.title} {duration(stage.seconds)}" for stage in stages
    )
    layout = _named_rows("seconds") | {"bargap": 0.45}
    return draw("cost-figure", f"{alt}.", [trace], layout, 64 + 28 * len(stages))


def _named_rows(what: str) -> dict[str, object]:
    return {
        "xaxis": {"title": title(what), "rangemode": "tozero"},
        "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False},
    }


def _whiskers(sizes: Sequence[float]) -> dict[str, object]:
    return {"type": "data", "array": list(sizes), "thickness": 1.5, "width": 5, "color": QUIET}
