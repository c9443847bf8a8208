"""A base model on its way to workers: by its reference where it has one, else as it is."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kshot.errors import SourceError
from kshot.experts.shot_runner import model_key
from kshot.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class SentModel:
    """What a worker needs to have the same base model.

    Attributes:
        key: Of the model, see `model_key`.
        arguments: Of `LanguageModel.load`; empty where `model` is sent itself.
        model: Made in memory; None where a worker loads it.
    """

    key: str
    arguments: Mapping[str, str]
    model: LanguageModel | None

    @classmethod
    def of(cls, lm: LanguageModel) -> "SentModel":
        """Describe a model; a folder is given whole, since a worker starts from another."""
        arguments = dict(lm.loaded_as or {})
        if arguments and Path(arguments["reference"]).expanduser().is_dir():
            arguments["reference"] = str(Path(arguments["reference"]).expanduser().resolve())
        return cls(model_key(lm), arguments, None if arguments else lm)

    def load(self) -> LanguageModel:
        """Return the model, loaded on this machine where it has a reference.

        Raises:
            SourceError: It is not to be had here, or is not the one that was described.
        """
        lm = self.model
        if lm is None:
            try:
                reference, others = self.arguments["reference"], self.arguments
                lm = LanguageModel.load(reference, dtype=others["dtype"], quantization=others["quantization"])
            except SourceError as error:
                raise SourceError(
                    f"a worker on {platform.node()} cannot load the base model: {error}"
                ) from error
        if model_key(lm) != self.key:
            raise SourceError(
                f"expected the base model {lm.name!r} as it is where the run was started, got another one on "
                f"{platform.node()}: its settings or weights differ; put the same model and the same version "
                "of transformers on every machine"
            )
        return lm
