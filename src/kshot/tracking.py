"""Where training is logged besides the run folder: TensorBoard, Weights & Biases, MLflow or trackio.

transformers' callbacks do it. TensorBoard and the local files of W&B go to the folder that is given, unless
the user's own variable names another; MLflow and trackio go where they are set up to.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from kshot.errors import MissingExtraError

_FOLDER_VARIABLES = {"tensorboard": "TENSORBOARD_LOGGING_DIR", "wandb": "WANDB_DIR"}


def check_tracker(report_to: str) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        MissingExtraError: As said; the message names the package.
    """
    if report_to != "none" and find_spec(report_to) is None:
        raise MissingExtraError(
            f"training.report_to expected the package {report_to}, which is not installed: "
            f"pip install {report_to}, or leave report_to out"
        )


@contextmanager
def logging_into(report_to: str, folder: Path | None) -> Iterator[None]:
    """Let a tracker that writes files write them to a folder, made for it, while the block runs."""
    variable = _FOLDER_VARIABLES.get(report_to)
    if folder is None or variable is None or variable in os.environ:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[variable] = str(folder)
    try:
        yield
    finally:
        del os.environ[variable]
