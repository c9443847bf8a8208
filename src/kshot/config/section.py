"""A part of a YAML file, checked when it is read; unknown keys are refused."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from kshot.errors import ConfigError
from kshot.nearest import nearest_inside, nearest_path

_YAML = (".yaml", ".yml")


class Section(BaseModel):
    """A mapping of the task file, or of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


def read_yaml(path: Path, model: type[S]) -> S:
    """Read a YAML file into a section.

    Raises:
        ConfigError: As `read_task`.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; expected a YAML file"
            f"{nearest_path(path)}{nearest_inside(path, _YAML)}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected YAML, got {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, got {type(raw).__name__}")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error.errors()[0], model)}") from error


def _explain(problem: Any, model: type[Section]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, problem["loc"][:-1])
        near = get_close_matches(str(problem["loc"][-1]), known, n=1)
        advice = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        return f"unknown key '{where}'; {advice}"
    if problem["type"] == "missing":
        return f"missing key '{where}'"
    got = "" if not where else f", got {problem['input']!r}"
    return f"{where + ': ' if where else ''}{problem['msg'].removeprefix('Value error, ')}{got}"


def _known_keys(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    for part in location:
        if isinstance(part, int):
            continue  # the item of a list, whose model was found with the list
        annotation = model.model_fields[part].annotation
        kinds = [annotation, *get_args(annotation)]
        model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)
