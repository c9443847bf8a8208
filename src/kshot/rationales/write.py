"""Fill in missing rationales: ask, check the stated answer, ask again where it is not the right one."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from kshot.errors import ConfigError
from kshot.examples import Example
from kshot.progress import Progress, Silent
from kshot.rationales.cache import AnswerCache
from kshot.rationales.checking import check, judge_of
from kshot.rationales.prompt import RationalePrompt, Style, checked_style, gold_answer
from kshot.rationales.result import Attempt, RationaleResult, RowResult, usage_of
from kshot.rationales.writer import Answer, Sampling, Writer

ATTEMPTS = (
    3  # the second and third are samples: what the likeliest answer gets wrong, one of them often gets right
)
TEMPERATURE = 0.7  # varied, and still on the subject; the middle of what model cards recommend
MAX_NEW_TOKENS = 256  # three sentences are about 100


def write_rationales(
    examples: Sequence[Example],
    writer: Writer,
    *,
    scorer: str = "exact_match",
    style: Style = "answer-first",
    prompt: RationalePrompt | None = None,
    attempts: int = ATTEMPTS,
    temperature: float = TEMPERATURE,
    seed: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
    cache: AnswerCache | None = None,
    progress: Progress | None = None,
) -> RationaleResult:
    """Let a model write the rationales that are missing, and keep those that lead to the right answer.

    Each row is asked once at temperature 0. Where the stated answer is not the right one, or the text is not
    in the form that was asked for, it is asked again with samples, each with a seed of its own. The line that
    states the answer is not part of the rationale, since `kshot.prompts.target_of` adds the answer itself.

    Args:
        examples: Those with a rationale are left as they are.
        writer: A `LocalWriter`, an `EndpointWriter`, or your own.
        scorer: What compares the stated answer with the right one: `exact_match`, `number` or
            `multiple_choice`.
        style: Whether the model states the answer before or after the explanation.
        prompt: In place of the paper's instruction.
        attempts: Most answers asked for one row.
        temperature: Of the second attempt and later ones, in (0, 2].
        seed: Of the second attempt; the next ones count up.
        max_new_tokens: Longest answer, in tokens.
        cache: Where answers are kept; None keeps none.
        progress: Draws a bar for each attempt.

    Raises:
        ConfigError: A setting is out of range or unknown.
        ExampleError: An example lacks what the scorer needs.
        SourceError: The writer fails; answers so far are in the cache.

    Reference: arXiv 2408.15915v2, section 3.2: gold answers expanded into rationales by a large model.
    """
    _check_settings(attempts, temperature, max_new_tokens)
    style, prompt = checked_style(style), prompt or RationalePrompt()
    missing = [index for index, example in enumerate(examples) if not (example.rationale or "").strip()]
    prompts = {index: _prompt_for(examples[index], prompt, scorer, style) for index in missing}
    found: dict[int, list[Attempt]] = {index: [] for index in missing}
    for number in range(attempts):
        open_rows = [index for index in missing if not _accepted(found[index])]
        if not open_rows:
            break
        first = number == 0
        sampling = Sampling(0.0 if first else temperature, 0 if first else seed + number - 1, max_new_tokens)
        asked = [prompts[index] for index in open_rows]
        with (progress or Silent()).bar(f"rationales, attempt {number + 1}", len(asked)) as advance:
            for position, answer, cached in _answers(asked, writer, sampling, cache):
                index = open_rows[position]
                verdict = check(answer, examples[index], scorer=scorer, style=style)
                found[index].append(Attempt(sampling, answer, verdict, cached))
                advance(1)
    rows = tuple(RowResult(index, examples[index].id, tuple(found[index])) for index in missing)
    return RationaleResult(_filled_in(examples, rows), rows, usage_of(rows))


def _check_settings(attempts: int, temperature: float, max_new_tokens: int) -> None:
    for name, value in (("attempts", attempts), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}: raise it")
    if not 0 < temperature <= 2:
        raise ConfigError(
            f"temperature must be in (0, 2], got {temperature}: it is that of the second attempt and later "
            "ones; the first is always at 0"
        )


def _prompt_for(example: Example, prompt: RationalePrompt, scorer: str, style: Style) -> str:
    # what the scorer cannot take is raised before anything is asked
    judge_of(scorer)(gold_answer(example, scorer), example)
    return prompt.render(example, scorer=scorer, style=style)


def _answers(
    prompts: Sequence[str], writer: Writer, sampling: Sampling, cache: AnswerCache | None
) -> Iterator[tuple[int, Answer, bool]]:
    """Yield the position of a prompt, its answer, and whether it was on disk; keep new ones there."""
    kept = [cache and cache.get(writer.identity, prompt, sampling) for prompt in prompts]
    for position, answer in enumerate(kept):
        if answer:
            yield position, answer, True
    open_prompts = [position for position, answer in enumerate(kept) if not answer]
    for number, answer in writer.answers([prompts[position] for position in open_prompts], sampling):
        position = open_prompts[number]
        if cache and answer.text:  # an empty answer may be a fault that has passed next time
            cache.put(writer.identity, prompts[position], sampling, answer)
        yield position, answer, False


def _accepted(attempts: Sequence[Attempt]) -> bool:
    return bool(attempts) and attempts[-1].verdict.rationale is not None


def _filled_in(examples: Sequence[Example], rows: Sequence[RowResult]) -> tuple[Example, ...]:
    filled = list(examples)
    for row in rows:
        if row.accepted:
            filled[row.index] = replace(filled[row.index], rationale=row.attempts[-1].verdict.rationale)
    return tuple(filled)
