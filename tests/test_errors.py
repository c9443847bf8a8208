"""Every error is a KshotError and also the standard error it resembles."""

import pytest

from kshot import errors
from kshot.errors import KshotError, reason_of


@pytest.mark.parametrize(
    ("kind", "standard"),
    [
        (errors.ConfigError, ValueError),
        (errors.ExampleError, ValueError),
        (errors.AdapterError, ValueError),
        (errors.SourceError, OSError),
        (errors.RunFolderError, OSError),
        (errors.EngineError, RuntimeError),
        (errors.SandboxError, OSError),
        (errors.MissingExtraError, ImportError),
    ],
)
def test_invariant_kinds(kind: type[Exception], standard: type[Exception]) -> None:
    assert issubclass(kind, KshotError)
    assert issubclass(kind, standard)
    assert str(kind("what to do")) == "what to do"


def test_reason_of() -> None:
    assert reason_of(ValueError("\nfirst line\nsecond line")) == "first line"
    assert reason_of(ValueError()) == "ValueError"
