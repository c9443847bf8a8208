"""Engines: work that is cut into shards, done here or by workers on many machines."""

from kshot.engine.choose import ENGINES, EngineName, open_engine
from kshot.engine.engine import Engine, MakeWorker, Worker
from kshot.engine.local import LocalEngine
from kshot.engine.ray_engine import RayEngine

__all__ = [
    "ENGINES",
    "Engine",
    "EngineName",
    "LocalEngine",
    "MakeWorker",
    "RayEngine",
    "Worker",
    "open_engine",
]
