"""Run folder -> contents of the report; nothing outside the folder is read."""

import yaml

from kshot.errors import RunFolderError
from kshot.report.contents import Contents
from kshot.report.parts.choice import read_choice
from kshot.report.parts.cost import read_cost
from kshot.report.parts.data import read_data
from kshot.report.parts.evaluation import read_evaluation
from kshot.report.parts.experts import read_selection
from kshot.report.parts.reading import parsing
from kshot.report.parts.routing import read_expert_use
from kshot.report.parts.training import read_training
from kshot.run_folder import CONFIG, ENVIRONMENT, RunFolder


def read_contents(run: RunFolder) -> Contents:
    """Read a run, finished or not.

    Raises:
        RunFolderError: There is no configuration, or a file is damaged or lacks something.
    """
    config = run.path(CONFIG)
    try:
        text = config.read_text(encoding="utf-8")
        settings = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunFolderError(f"expected {config}, cannot read it: {error}; run 'kshot run' first") from error
    with parsing(config):
        named = {key: settings[key] for key in ("name", "base_model", "seed")}
        similarity, has_test = settings["experts"].get("similarity", "delta"), bool(settings["test"])
    return Contents(
        **named,
        similarity=similarity,
        config=text,
        environment=run.read_json(ENVIRONMENT) if run.path(ENVIRONMENT).is_file() else {},
        cost=read_cost(run),
        selection=read_selection(run),
        data=read_data(run),
        training=read_training(run),
        choice=read_choice(run),
        evaluation=read_evaluation(run, has_test=has_test),
        expert_use=read_expert_use(run),
    )
