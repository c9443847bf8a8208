"""Evaluation: scorers, the runner, statistics."""

from kshot.evaluation.runner import EvaluationResult, Prediction, evaluate

__all__ = ["EvaluationResult", "Prediction", "evaluate"]
