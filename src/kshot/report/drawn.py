"""Which pictures a run has data for."""

from kshot.report.contents import Contents
from kshot.report.figures.data import draw_map, draw_relevance, draw_sources
from kshot.report.figures.drawing import Figure
from kshot.report.figures.experts import draw_bank, draw_groups, draw_similarity
from kshot.report.figures.results import draw_arms, draw_cases, draw_choice, draw_cost
from kshot.report.figures.training import draw_layers, draw_losses
from kshot.report.parts.evaluation import count_outcomes
from kshot.report.parts.reading import Missing


def draw_figures(contents: Contents) -> dict[str, Figure]:
    """Draw what the run has data for, by the id of the picture."""
    figures = []
    if not isinstance(contents.evaluation, Missing):
        figures += [draw_arms(contents.evaluation), draw_cases(count_outcomes(contents.evaluation))]
    if contents.choice is not None and contents.choice.arms:
        figures.append(draw_choice(contents.choice))
    if contents.cost.stages:
        figures.append(draw_cost(contents.cost))
    if not isinstance(contents.selection, Missing):
        selection = contents.selection
        figures += [draw_bank(selection), draw_groups(selection), draw_similarity(selection)]
    if not isinstance(contents.data, Missing) and contents.data.pool_rows:
        figures += [draw_relevance(contents.data), draw_sources(contents.data)]
        figures += [draw_map(contents.data.map)] if contents.data.map else []
    if not isinstance(contents.training, Missing):
        figures.append(draw_losses(contents.training))
    if not isinstance(contents.expert_use, Missing):
        figures.append(draw_layers(contents.expert_use))
    return {figure.id: figure for figure in figures}
