"""The command that fills in missing rationales."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kshot.cli.printing import AsJson, print_result
from kshot.endpoint import CONCURRENCY, RETRIES, TIMEOUT_S
from kshot.errors import ConfigError, ExampleError
from kshot.rationales import (
    AnswerCache,
    EndpointWriter,
    LocalWriter,
    RationalePrompt,
    RationaleResult,
    Writer,
    write_rationales,
)
from kshot.rationales.files import (
    check_out,
    provenance_file,
    read_rows,
    row_summaries,
    summary,
    write_provenance,
    write_rows,
)
from kshot.rationales.prompt import checked_style
from kshot.rationales.write import ATTEMPTS, MAX_NEW_TOKENS, TEMPERATURE
from kshot.terminal import RichProgress

RATIONALES = typer.Typer()
ROWS_SHOWN = 5  # of those that stay without a rationale; the provenance file has them all

Endpoint = Annotated[str | None, typer.Option(help="Base URL of an OpenAI-compatible endpoint.")]
Prompt = Annotated[
    Path | None, typer.Option(help="Jinja2 template: question, answer, choices, output, style.")
]
Price = Annotated[float, typer.Option(min=0, help="Per million tokens; 0 if unknown.")]


@RATIONALES.command("rationales")
def rationales_command(
    shots: Annotated[str, typer.Argument(help="A .jsonl, .json, .parquet or .csv file, or hf://owner/name.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The rows with their rationales (.jsonl).")],
    model: Annotated[
        str, typer.Option(help="A folder, Hub id or pypi: wheel; with --endpoint its name there.")
    ],
    endpoint: Endpoint = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Variable with the API key; OPENAI_API_KEY if set.")
    ] = None,
    scorer: Annotated[
        str, typer.Option(help="Compares the stated answer: exact_match, number or multiple_choice.")
    ] = "exact_match",
    style: Annotated[str, typer.Option(help="answer-first or reason-first.")] = "answer-first",
    prompt: Prompt = None,
    attempts: Annotated[int, typer.Option(help="Most answers asked for one row.")] = ATTEMPTS,
    temperature: Annotated[
        float, typer.Option(help="Of the second attempt and later; the first is at 0.")
    ] = TEMPERATURE,
    seed: Annotated[int, typer.Option(help="Of the second attempt; later ones count up.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = MAX_NEW_TOKENS,
    concurrency: Annotated[
        int, typer.Option(help="Requests under way, or rows decoded, at once.")
    ] = CONCURRENCY,
    requests_per_minute: Annotated[float | None, typer.Option(help="Limit for the endpoint.")] = None,
    timeout_s: Annotated[float | None, typer.Option(help=f"Of a request; {TIMEOUT_S:g} by default.")] = None,
    retries: Annotated[int | None, typer.Option(help=f"Of a request; {RETRIES} by default.")] = None,
    price_in: Price = 0.0,
    price_out: Price = 0.0,
    dtype: Annotated[str | None, typer.Option(help="Of a local model: float32, bfloat16, float16.")] = None,
    device: Annotated[str | None, typer.Option(help="For a local model, such as cuda.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of answers; KSHOT_HOME/rationales by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a model write the rationales that are missing; kept are those that state the right answer.

    Example: kshot rationales shots.jsonl --out with.jsonl --model gpt-4o-mini --endpoint https://api.openai.com/v1
    """
    check_out(out, force=force)
    template = RationalePrompt.read(prompt) if prompt else RationalePrompt()
    chosen_style = checked_style(style)
    source = read_rows(shots)
    remote = {
        "api_key_env": api_key_env,
        "requests_per_minute": requests_per_minute,
        "timeout_s": timeout_s,
        "retries": retries,
        "price_in": price_in or None,
        "price_out": price_out or None,
    }
    writer = _writer(model, endpoint, concurrency, remote, {"dtype": dtype, "device": device})
    result = write_rationales(
        source.examples,
        writer,
        scorer=scorer,
        style=chosen_style,
        prompt=template,
        attempts=attempts,
        temperature=temperature,
        seed=seed,
        max_new_tokens=max_new_tokens,
        cache=AnswerCache(cache),
        progress=RichProgress(),
    )
    _refuse_nothing(result)
    how = {"scorer": scorer, "style": style, "prompt": template.source, "max_new_tokens": max_new_tokens}
    write_provenance(out, result, {"writer": dict(writer.identity), **how})
    write_rows(out, source, result)
    _show(result, out, result.usage.cost(price_in, price_out), as_json)


def _writer(
    model: str, endpoint: str | None, concurrency: int, remote: dict[str, Any], local: dict[str, Any]
) -> Writer:
    """Return the writer; a setting that is for the other kind is refused."""
    idle = local if endpoint else remote
    for name, value in idle.items():
        if value is not None:
            kind = (
                "a local model; leave it, or --endpoint, out"
                if endpoint
                else "an endpoint; add --endpoint URL"
            )
            raise ConfigError(f"--{name.replace('_', '-')} is for {kind}")
    if not endpoint:
        return LocalWriter.load(
            model, dtype=local["dtype"] or "float32", device=local["device"], batch_size=concurrency
        )
    settings = {
        name: value for name, value in remote.items() if value is not None and not name.startswith("price")
    }
    return EndpointWriter(endpoint, model, concurrency=concurrency, **settings)


def _refuse_nothing(result: RationaleResult) -> None:
    if result.rows and not result.accepted:
        counts = ", ".join(f"{reason}: {count}" for reason, count in result.reasons.items())
        first = result.rows[0]
        said = " ".join(first.attempts[-1].answer.text.split())[:80]
        raise ExampleError(
            f"expected at least one rationale that states the right answer, got none for {len(result.rows)} "
            f"rows ({counts}); the answer to {first.id} was {said!r}; "
            "try another --model, --style or --prompt"
        )


def _show(result: RationaleResult, out: Path, cost: float | None, as_json: bool) -> None:
    usage = result.usage
    if as_json:
        used = {
            "answers": usage.answers,
            "cached": usage.cached,
            "tokens_in": usage.tokens_in,
            "tokens_out": usage.tokens_out,
            "uncounted": usage.uncounted,
            "cost": cost,
        }
        print_result(summary(result) | {"usage": used, "out": str(out), "rows": row_summaries(result)}, True)
        return
    rejected = [row for row in result.rows if not row.accepted]
    had = len(result.examples) - len(result.rows)
    typer.echo(f"{result.accepted} rationales written, {had} rows had one, {len(rejected)} stay without")
    for row in rejected[:ROWS_SHOWN]:
        typer.echo(f"  {row.id}: {row.reason}")
    if len(rejected) > ROWS_SHOWN:
        counts = ", ".join(f"{reason}: {count}" for reason, count in result.reasons.items())
        typer.echo(f"  and {len(rejected) - ROWS_SHOWN} more; in all {counts}")
    uncounted = f", {usage.uncounted} answers without a token count" if usage.uncounted else ""
    price = "" if cost is None else f", cost {cost:.4f}"
    typer.echo(
        f"{usage.answers} answers made, {usage.cached} from the cache: {usage.tokens_in} tokens in, "
        f"{usage.tokens_out} out{uncounted}{price}"
    )
    typer.echo(f"rows: {out}\nprovenance: {provenance_file(out)}")
