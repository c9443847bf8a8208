"""What all commands share: `--quiet`, and Ctrl-C, which leaves what can be gone on with."""

import functools
import inspect
import os
import shlex
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Any

import typer

from kshot.terminal import ERRORS, PROGRESS

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show results and errors only.")]
INTERRUPTED = 130  # as shells count it: 128 and the number of SIGINT


def share(app: typer.Typer) -> None:
    """Give all commands of an app, and of the apps in it, what commands share."""
    for command in app.registered_commands:
        assert command.callback is not None  # a command is registered with what it does
        command.callback = _shared(command.callback)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        share(group.typer_instance)


def _shared(command: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(command)
    def with_shared(*args: Any, quiet: bool = False, **options: Any) -> Any:
        PROGRESS.quiet = quiet
        earlier = signal.signal(signal.SIGINT, _stop)
        try:
            return command(*args, **options)
        except KeyboardInterrupt:
            ERRORS.print(
                f"stopped; to go on: {shlex.join(['kshot', *sys.argv[1:]])}", highlight=False, soft_wrap=True
            )
            raise typer.Exit(INTERRUPTED) from None
        finally:
            signal.signal(signal.SIGINT, earlier)

    own = inspect.signature(command)
    quiet = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet)
    with_shared.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*own.parameters.values(), quiet]
    )
    with_shared.__annotations__ = {**command.__annotations__, "quiet": Quiet}
    return with_shared


def _stop(number: int, frame: FrameType | None) -> None:
    """Let drafts be removed and the command end; the next Ctrl-C does not wait for that."""
    signal.signal(signal.SIGINT, _quit)
    raise KeyboardInterrupt


def _quit(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)
