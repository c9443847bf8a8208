"""Pictures of the training: the loss of each run, and which experts the tuned mixture uses."""

from collections.abc import Sequence

from kshot.report.figures.drawing import ACCENT, EXPERT_COLOURS, WARM, Figure, draw, label, title
from kshot.report.parts.routing import ExpertUse
from kshot.report.parts.training import Training
from kshot.report.wording import percent, plural

SMOOTHED = 20  # steps from which a running mean is easier to read than the losses themselves


def draw_losses(training: Sequence[Training]) -> Figure:
    """Draw the loss of each run, step by step, and its running mean."""
    traces = []
    for one, colour in zip(training, (WARM, ACCENT), strict=False):
        steps = list(range(1, len(one.losses) + 1))
        smooth = len(one.losses) >= SMOOTHED
        traces.append(
            {
                "type": "scatter",
                "mode": "lines" if smooth else "lines+markers",
                "name": one.title,
                "x": steps,
                "y": list(one.losses),
                "line": {"color": colour, "width": 1.0 if smooth else 2.0},
                "opacity": 0.4 if smooth else 1.0,
                "showlegend": not smooth,
                "hovertemplate": f"step %{{x}}<br>{label(one.title)}: %{{y:.3f}}<extra></extra>",
            }
        )
        if smooth:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": one.title,
                    "x": steps,
                    "y": _running_mean(one.losses),
                    "line": {"color": colour, "width": 2.5},
                    "hoverinfo": "skip",
                }
            )
    layout = {
        "xaxis": {"title": title("optimiser step")},
        "yaxis": {"title": title("loss, nats a token"), "rangemode": "tozero"},
        "showlegend": True,
    }
    alt = "Training loss, step by step. " + "; ".join(
        f"{one.title} from {one.first_loss:.3f} to {one.last_loss:.3f}" for one in training if one.losses
    )
    return draw("loss-figure", f"{alt}.", traces, layout, 340)


def draw_layers(use: ExpertUse) -> Figure:
    """Draw the share of each expert in each layer of the base."""
    places = list(range(len(use.layers)))
    traces = [
        {
            "type": "bar",
            "name": label(choice),
            "x": places,
            "y": [100 * layer.gates_E[place] for layer in use.layers],
            "marker": {"color": EXPERT_COLOURS[place % len(EXPERT_COLOURS)]},
            "hovertext": [
                f"layer {number}: <b>{label(choice)}</b> {percent(layer.gates_E[place])}"
                for number, layer in enumerate(use.layers)
            ],
            "hoverinfo": "text",
        }
        for place, choice in enumerate(use.choices)
    ]
    layout = {
        "barmode": "stack",
        "bargap": 0.12,
        "xaxis": {"title": title("layer of the base model"), "showgrid": False},
        "yaxis": {"title": title("share of the gates, %"), "range": [0, 100]},
        "legend": {"traceorder": "normal"},
        "showlegend": True,
    }
    alt = (
        f"Which experts each of {plural(len(use.layers), 'layer')} uses. Over all layers: "
        + ", ".join(f"{choice} {percent(share)}" for choice, share in use.shares.items())
        + "."
    )
    return draw("layers-figure", alt, traces, layout, 340)


def _running_mean(losses: Sequence[float]) -> list[float]:
    """Return the mean over a tenth of the steps up to each."""
    width = max(2, len(losses) // 10)
    means = []
    for end in range(1, len(losses) + 1):
        window = losses[max(0, end - width) : end]
        means.append(round(sum(window) / len(window), 4))
    return means
