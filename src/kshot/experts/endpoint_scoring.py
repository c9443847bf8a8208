"""Score the adapters of a bank through a server that holds them, such as vLLM with LoRA."""

from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches

from kshot.bank import Adapter, Bank
from kshot.config import EndpointConfig
from kshot.endpoint import RETRIES
from kshot.errors import AdapterError, ConfigError
from kshot.examples import Example
from kshot.experts.asked_shots import ask_shots
from kshot.experts.endpoint_base import ServedBase
from kshot.experts.endpoint_check import BaseCheck, base_name
from kshot.experts.endpoint_client import CompletionsClient
from kshot.experts.endpoint_names import lora_module, served_names, vllm_command
from kshot.experts.endpoint_runner import EndpointRunner
from kshot.experts.expert_score import ExpertScore, Scores
from kshot.experts.outcomes import Outcomes
from kshot.experts.score_store import ScoreStore
from kshot.progress import Advance


def score_at_endpoint(
    base: ServedBase,
    bank: Bank,
    shots: Sequence[Example],
    endpoint: EndpointConfig,
    *,
    scorer: str = "exact_match",
    listed: bool = False,
    max_new_tokens: int = 128,
    retries: int = RETRIES,
    store: ScoreStore | None = None,
    on_score: Callable[[ExpertScore], None] | None = None,
    say: Callable[[str], None] | None = None,
    progress: Advance | None = None,
) -> Scores:
    """Score every adapter of a bank as `score_experts` does, without a model here.

    An adapter that is damaged, not served, or for which the server gives no likelihoods is a failure of its
    own and stops no other. A server that cannot be reached, refuses or answers with nonsense ends the whole;
    what it said before is kept, and what is known of all adapters needs no server.

    Args:
        base: The base model of the adapters.
        bank: Adapters that the server holds too.
        shots: The K examples.
        endpoint: Where the server is, and what it calls the adapters.
        scorer: As in `kshot.evaluate`.
        listed: As in `kshot.evaluate`.
        max_new_tokens: Longest generated answer.
        retries: Of one request.
        store: Keeps each result as soon as it is known; what an earlier call left there is not asked again.
        on_score: Called with each score as soon as it is known.
        say: Called with what the user should know: a command that serves what is not served, or adapters that
            change nothing.
        progress: Called with the number of (adapter, shot) pairs just finished.

    Returns:
        As `score_experts`.

    Raises:
        ConfigError: The bank is empty, or a setting cannot be used.
        ExampleError: There are no shots, or one lacks what the scorer needs or does not fit the context.
        MissingExtraError: The client is not installed.
        AdapterError: No adapter can be scored.
        SourceError: See above.
    """
    if not len(bank):
        raise ConfigError("expected at least one adapter to score, got an empty bank")
    say, advance = say or (lambda text: None), progress or (lambda pairs: None)
    client = CompletionsClient(endpoint, base, retries=retries)
    asked = ask_shots(base, shots, scorer, listed=listed)
    runner = EndpointRunner(
        client,
        base,
        asked,
        served_names(bank, endpoint),
        scorer=scorer,
        listed=listed,
        max_new_tokens=max_new_tokens,
        store=ScoreStore() if store is None else store,
    )
    outcomes = Outcomes(runner, on_score)
    readable = [adapter for adapter in bank if _is_readable(adapter, outcomes.failures)]
    pending = [adapter for adapter in readable if runner.missing(adapter)]
    outcomes.conclude([adapter for adapter in readable if adapter not in pending])
    models = client.models() if pending else {}
    served = _those_served(pending, runner.served, models, client.url, outcomes.failures)
    if len(served) < len(pending):
        say(f"this serves all adapters: {vllm_command(base, list(bank), runner.served)}")
    advance((len(bank) - len(served)) * len(shots))
    if served:
        base_model = base_name(models, list(runner.served.values()), base)
        base_check = BaseCheck(client, asked, base_model, runner.served[served[0].name])
        for adapter, failure in runner.run(served, endpoint.concurrency, advance):
            if failure:
                outcomes.failures[adapter.name] = failure
            else:
                outcomes.conclude([adapter])
                base_check.compare(adapter, runner.nll(adapter, base_check.shot))
        base_check.report(say)
    return outcomes.in_order_of(bank)


def _is_readable(adapter: Adapter, failures: dict[str, str]) -> bool:
    """Read the weights, which later stages need, and which must be those that the bank recorded."""
    try:
        adapter.load()
    except AdapterError as error:
        failures[adapter.name] = str(error)
        return False
    return True


def _those_served(
    adapters: Sequence[Adapter],
    served: Mapping[str, str],
    models: Collection[str],
    url: str,
    failures: dict[str, str],
) -> list[Adapter]:
    for adapter in adapters:
        name = served[adapter.name]
        if name not in models:
            near = get_close_matches(name, models, n=1) or sorted(models)[:1] or ["nothing"]
            failures[adapter.name] = (
                f"expected it as {name!r} at {url}, which serves {len(models)} models, such as {near[0]}: "
                f"start vLLM with --lora-modules {lora_module(adapter, name)}, or give its name there in "
                "experts.endpoint.names"
            )
    return [adapter for adapter in adapters if adapter.name not in failures]
