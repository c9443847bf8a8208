"""A model behind an OpenAI-compatible endpoint: the connection, its pace, and calls that run at once."""

from kshot.endpoint.connection import CONCURRENCY, DEFAULT_KEY, RETRIES, TIMEOUT_S, Connection
from kshot.endpoint.pacing import Pacer
from kshot.endpoint.threads import in_threads

__all__ = ["CONCURRENCY", "DEFAULT_KEY", "RETRIES", "TIMEOUT_S", "Connection", "Pacer", "in_threads"]
