"""The command that serves experts."""

from typing import Annotated

import typer

from kshot.errors import MissingExtraError
from kshot.serving.engine import MAX_BATCH_TOKENS, MAX_ROWS, MAX_WAITING
from kshot.serving.limits import LOOPBACK, MAX_BODY_BYTES, PORT, TIMEOUT_S, Limits

SERVE = typer.Typer()
_EXTRA = ("fastapi", "prometheus_client", "starlette", "uvicorn")


@SERVE.command("serve")
def serve_command(
    experts: Annotated[
        list[str], typer.Argument(help="Run or adapter folders of one base model, or NAME=FOLDER.")
    ],
    host: Annotated[str, typer.Option(help="Where to listen; by default for this machine alone.")] = LOOPBACK,
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = PORT,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable with the key that clients must send.")
    ] = None,
    base_model: Annotated[str | None, typer.Option(help="In place of the one that the experts name.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="Such as cuda; the accelerator by default.")] = None,
    max_rows: Annotated[int, typer.Option(help="Requests answered at once.", min=1)] = MAX_ROWS,
    max_batch_tokens: Annotated[
        int, typer.Option(help="Tokens of all of these together, which bounds memory.", min=2)
    ] = MAX_BATCH_TOKENS,
    max_waiting: Annotated[
        int, typer.Option(help="Requests that may wait beside them; others get status 429.", min=1)
    ] = MAX_WAITING,
    max_body_bytes: Annotated[
        int, typer.Option(help="Largest request; a larger one gets 413.", min=1)
    ] = MAX_BODY_BYTES,
    requests_per_minute: Annotated[
        int | None,
        typer.Option(help="Of one client, by its address; others get 429. No limit by default.", min=1),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option(help="Longest time for an answer; a longer one gets 504.", min=1)
    ] = TIMEOUT_S,
) -> None:
    """Serve experts of one base model behind OpenAI's API, with a page to chat on.

    Example: kshot serve runs/arc runs/math --port 8000
    """
    try:
        from kshot.serving.run import read_api_key, serve
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        raise MissingExtraError(f"serving needs {error.name}: pip install 'kshot[serve]'") from error
    serve(
        experts,
        host=host,
        port=port,
        base_model=base_model,
        dtype=dtype,
        device=device,
        limits=Limits(
            api_key=read_api_key(api_key_env) if api_key_env else None,
            max_body_bytes=max_body_bytes,
            requests_per_minute=requests_per_minute,
            timeout_s=timeout_s,
        ),
        max_rows=max_rows,
        max_batch_tokens=max_batch_tokens,
        max_waiting=max_waiting,
        say=typer.echo,
    )
