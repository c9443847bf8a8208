"""The base model of adapters that a server holds: its tokenizer and settings, without its weights."""

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from kshot.errors import SourceError, reason_of
from kshot.model_source import resolve_model
from kshot.prompts import PromptTemplate


@dataclass(frozen=True, slots=True)
class ServedBase:
    """What turns shots into the tokens that a `LanguageModel` of the same base reads, and back.

    Attributes:
        name: As the user calls it.
        folder: Where its files are.
        template: How prompts are written.
        max_length: Longest row the model reads, in tokens.
        end_ids: Tokens that end an answer.
    """

    name: str
    folder: Path
    template: PromptTemplate
    max_length: int
    end_ids: tuple[int, ...]

    @classmethod
    def load(cls, reference: str) -> "ServedBase":
        """Read a tokenizer and settings; of a Hub model the weights are not fetched.

        Args:
            reference: See `kshot.model_source.resolve_model`.

        Raises:
            SourceError: It cannot be fetched, or there is no tokenizer.
        """
        folder = resolve_model(reference, weights=False)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            if (folder / "generation_config.json").is_file():
                generation = GenerationConfig.from_pretrained(folder)
            else:
                generation = GenerationConfig.from_model_config(config)
        except Exception as error:  # OSError, ValueError, KeyError and others, as in LanguageModel.load
            raise SourceError(
                f"expected a tokenizer and config.json in {folder}, got: {reason_of(error)}"
            ) from error
        template = PromptTemplate(tokenizer)
        longest = getattr(config, "max_position_embeddings", tokenizer.model_max_length)
        end_ids = template.end_ids(generation.eos_token_id)
        return cls(reference, folder, template, int(longest), tuple(end_ids))
