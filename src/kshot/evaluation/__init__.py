"""Evaluation: scorers, the runner, statistics."""

from kshot.evaluation.runner import EvaluationResult, Prediction, evaluate, num_units

__all__ = ["EvaluationResult", "Prediction", "evaluate", "num_units"]
