"""`kshot doctor`: what of the environment, and of a task, is fit for a run."""

from kshot.doctor.environment import check_environment
from kshot.doctor.finding import Finding, is_usable
from kshot.doctor.task import check_task

__all__ = ["Finding", "check_environment", "check_task", "is_usable"]
