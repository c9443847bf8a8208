"""Every error a user can cause. Each is a `KshotError` and also the standard error it resembles.

A message says what was expected, what came, and what to do about it.
"""


class KshotError(Exception):
    """A mistake that the user can mend; the command line prints it as one line and exits with code 2."""


class ConfigError(KshotError, ValueError):
    """A setting is unknown, out of range or without effect."""


class ExampleError(KshotError, ValueError):
    """A row cannot be read as an example, or lacks what the task needs.

    Attributes:
        reason: The kind of mistake in one word, by which skipped rows are counted.
    """

    def __init__(self, message: str, *, reason: str = "no_example") -> None:
        super().__init__(message)
        self.reason = reason


class AdapterError(KshotError, ValueError):
    """An adapter cannot be used: wrong shapes, unsupported kind, damaged or unsafe weights."""


class SourceError(KshotError, OSError):
    """A model, encoder, adapter or data set cannot be found, fetched or trusted."""


class RunFolderError(KshotError, OSError):
    """The run folder cannot be read or written."""


class EngineError(KshotError, RuntimeError):
    """Workers on other machines cannot be reached or started, or are lost again and again."""


class SandboxError(KshotError, OSError):
    """What a model wrote cannot be run safely on this machine, or not at all."""


class MissingExtraError(KshotError, ImportError):
    """A feature needs an optional package; the message names the extra to install."""


def reason_of(error: BaseException) -> str:
    """Return the first line of a foreign error's text, or its kind where it has none, to quote in ours."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
