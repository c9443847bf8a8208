"""The task file: its sections, each with its keys, defaults and their reasons."""

from kshot.config.data import DataConfig, EncoderDtype, ExampleField, PoolSource
from kshot.config.evaluation import FOLDS, SHOTS_FOR_FOLDS, Beside, EvaluationConfig, Scorer
from kshot.config.experts import MOST_SCORED, EndpointConfig, ExpertsConfig
from kshot.config.mixture import MixtureSettings
from kshot.config.section import Section, read_yaml
from kshot.config.task import TaskConfig, json_schema, read_task
from kshot.config.training import TrainingConfig

__all__ = [
    "FOLDS",
    "MOST_SCORED",
    "SHOTS_FOR_FOLDS",
    "Beside",
    "DataConfig",
    "EncoderDtype",
    "EndpointConfig",
    "EvaluationConfig",
    "ExampleField",
    "ExpertsConfig",
    "MixtureSettings",
    "PoolSource",
    "Scorer",
    "Section",
    "TaskConfig",
    "TrainingConfig",
    "json_schema",
    "read_task",
    "read_yaml",
]
