"""A model on this machine as a writer."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kshot.errors import ConfigError
from kshot.language_model import LanguageModel
from kshot.model_source import resolve_model
from kshot.rationales.sampling import SampledChoice
from kshot.rationales.writer import Answer, Sampling, Stop

BATCH_SIZE = 8  # a killed run loses one batch; small, since each row of it is an answer lost


class LocalWriter:
    """Answers with a loaded language model, a batch at a time.

    Args:
        lm: The model.
        identity: What tells its answers from another model's; its name by default.
        batch_size: Rows decoded at once.

    Raises:
        ConfigError: `batch_size` is below 1.
    """

    def __init__(
        self, lm: LanguageModel, *, identity: Mapping[str, str] | None = None, batch_size: int = BATCH_SIZE
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}: raise it")
        self._lm = lm
        self._identity = dict(identity or {"model": lm.name})
        self._batch_size = batch_size

    @classmethod
    def load(
        cls,
        reference: str,
        *,
        dtype: str = "float32",
        device: str | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> "LocalWriter":
        """Load a model; its identity changes when files of its folder do.

        Args:
            reference: See `kshot.model_source.resolve_model`.
            dtype: As in `LanguageModel.load`.
            device: As in `LanguageModel.load`.
            batch_size: Rows decoded at once.

        Raises:
            SourceError: The model cannot be found or loaded.
            ConfigError: A setting is out of range.
        """
        folder = resolve_model(reference)
        lm = LanguageModel.load(reference, dtype=dtype, device=device)
        identity = {"model": reference, "files": _fingerprint(folder), "dtype": dtype}
        return cls(lm, identity=identity, batch_size=batch_size)

    @property
    def identity(self) -> Mapping[str, str]:
        """Model, its files and its number format."""
        return self._identity

    def answers(self, prompts: Sequence[str], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        """Yield the answers of each batch; rows of like length share one."""
        lengths = [len(self._lm.template.encode_prompt(prompt)) for prompt in prompts]
        room = self._lm.max_length - sampling.max_new_tokens
        for index, length in enumerate(lengths):
            if length > room:
                yield index, Answer("", length, 0, "prompt_too_long")
        fitting = sorted((i for i, length in enumerate(lengths) if length <= room), key=lengths.__getitem__)
        for start in range(0, len(fitting), self._batch_size):
            indices = fitting[start : start + self._batch_size]
            batch = self._batch([prompts[index] for index in indices], sampling)
            for index, (text, tokens_out) in zip(indices, batch, strict=True):
                stop: Stop = "length" if tokens_out == sampling.max_new_tokens else "end"
                yield index, Answer(text, lengths[index], tokens_out, stop)

    def _batch(self, prompts: Sequence[str], sampling: Sampling) -> list[tuple[str, int]]:
        """Return the text of each answer and its length in tokens, end token included."""
        tokens = [0] * len(prompts)

        def count(rows: list[int]) -> None:
            for row in rows:
                tokens[row] += 1

        seeds = [_row_seed(sampling.seed, prompt) for prompt in prompts]
        texts = self._lm.generate(
            prompts,
            max_new_tokens=sampling.max_new_tokens,
            batch_size=len(prompts),
            on_rows=count,
            choose=SampledChoice(sampling.temperature, seeds) if sampling.temperature else None,
        )
        return list(zip(texts, tokens, strict=True))


def _row_seed(seed: int, prompt: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{prompt}".encode()).digest()[:7])


def _fingerprint(folder: Path) -> str:
    """Return a hash of names, sizes and times: a model trained again in place is another one."""
    files = sorted(path for path in folder.resolve().iterdir() if path.is_file())
    seen = [f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join([str(folder.resolve()), *seen]).encode()).hexdigest()[:16]
