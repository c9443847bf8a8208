"""The command `kshot`: Ctrl-C while torch is being imported ends it in silence, since no run has begun.

A module of its own, as importing any part of `kshot` imports torch.
"""

import os
import signal

signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))

from kshot.cli import main  # noqa: E402 - what takes seconds, after the handler

__all__ = ["main"]
