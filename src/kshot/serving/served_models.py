"""Which experts are served: run folders and adapter folders -> mixtures beside each other on one base."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from torch import nn

from kshot.config import read_task
from kshot.errors import AdapterError, ConfigError, RunFolderError
from kshot.language_model import LanguageModel
from kshot.mixture import build_mixture
from kshot.mixture.config import PEFT_TYPE
from kshot.mixture.folder import CONFIG_NAME, WEIGHTS_NAME, read_config
from kshot.mixture.row_adapters import BASE_ROWS
from kshot.run_folder import ADAPTER, CONFIG, RunFolder, adapter_to_use
from kshot.serving.last_gates import choices_of


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One name that requests may ask for.

    Attributes:
        name: As clients call it.
        adapter: As PEFT calls it; `BASE_ROWS` for the base alone.
        experts: Those of its mixture.
    """

    name: str
    adapter: str
    experts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExpertSource:
    """An expert that is to be served.

    Attributes:
        name: The one given, the task's or the folder's.
        folder: Of the adapter.
        base_model: What it says it belongs to; None if it says nothing.
    """

    name: str
    folder: Path
    base_model: str | None


def find_expert(given: str) -> ExpertSource:
    """Find the adapter of a run folder or an adapter folder.

    Args:
        given: `FOLDER` or `NAME=FOLDER`.

    Raises:
        RunFolderError: It is no folder, a run without a finished expert, or one that has chosen the base.
        AdapterError: It holds no adapter with safetensors.
    """
    name, _, path = given.rpartition("=") if not Path(given).is_dir() else ("", "", given)
    root = Path(path).expanduser()
    if not root.is_dir():
        raise RunFolderError(f"expected a run folder or an adapter folder, got {path}: no such folder")
    task_file = next((one / CONFIG for one in (root, root.parent) if (one / CONFIG).is_file()), None)
    is_run = task_file is not None and task_file.parent == root
    places = [adapter_to_use(RunFolder.read_only(root))] if is_run else [root / ADAPTER, root]
    adapters = [one for one in places if (one / CONFIG_NAME).is_file()]
    if not adapters:
        raise AdapterError(
            f"{root}: expected a run folder or a PEFT adapter folder, got neither: give the folder that "
            "'kshot run --out' or save_pretrained wrote"
        )
    folder = adapters[0]
    if not (folder / WEIGHTS_NAME).is_file():
        raise AdapterError(f"{folder}: expected {WEIGHTS_NAME}, got none: pickled weights are never read")
    base_model = read_config(folder).get("base_model_name_or_path")
    own_name = read_task(task_file).name if task_file else root.resolve().name
    return ExpertSource(name or own_name, folder, base_model if isinstance(base_model, str) else None)


def load_served(
    sources: Sequence[ExpertSource],
    *,
    base_model: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
) -> tuple[LanguageModel, list[ServedModel]]:
    """Load the base and put every expert beside the others on it; plain LoRAs as mixtures of one.

    Args:
        sources: At least one.
        base_model: In place of the one that the experts name.
        dtype: Of the base.
        device: Where to; the accelerator if there is one.

    Returns:
        The language model, whose `model` is a PeftModel, and what it serves, the base last.

    Raises:
        ConfigError: Names repeat, or the experts name different bases or none.
        AdapterError: An adapter is damaged or does not fit the base.
    """
    reference = base_model or one_base(sources)
    base_name = Path(reference).name if Path(reference).is_dir() else reference
    names = [source.name for source in sources] + [base_name]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"expected different names, got {twice} twice: give one of them as NAME=FOLDER")
    lm = LanguageModel.load(reference, dtype=dtype, device=device)
    model: nn.Module = lm.model
    served = []
    for number, source in enumerate(sources):
        adapter = f"served-{number}"  # PEFT does not take every name: it loses weights by some
        model = _put_beside(model, source, adapter)
        served.append(ServedModel(source.name, adapter, choices_of(model, adapter)))
    lm.model = model.eval().requires_grad_(False)
    return lm, [*served, ServedModel(base_name, BASE_ROWS)]


def one_base(sources: Sequence[ExpertSource]) -> str:
    """Return the base that all experts name.

    Raises:
        ConfigError: They name several or none.
    """
    nameless = next((source for source in sources if not source.base_model), None)
    if nameless:
        raise ConfigError(
            f"expected {nameless.folder} to name its base model, got none: give it with --base-model"
        )
    first, *others = sources
    for other in others:
        if other.base_model != first.base_model and not _same_folder(
            str(first.base_model), str(other.base_model)
        ):
            raise ConfigError(
                f"expected experts of one base model, got {first.base_model} ({first.name}) and "
                f"{other.base_model} ({other.name}): serve them apart, or give --base-model if both are one"
            )
    return str(first.base_model)


def _same_folder(first: str, second: str) -> bool:
    return all(Path(one).is_dir() for one in (first, second)) and Path(first).samefile(second)


def _put_beside(model: nn.Module, source: ExpertSource, adapter: str) -> PeftModel:
    if read_config(source.folder).get("peft_type") != PEFT_TYPE.value:
        return build_mixture(model, {source.name: source.folder}, fixed_gates=[1.0], adapter_name=adapter)
    try:
        if not isinstance(model, PeftModel):
            return PeftModel.from_pretrained(model, str(source.folder), adapter_name=adapter)
        model.load_adapter(str(source.folder), adapter_name=adapter)
    except AdapterError:
        raise
    except Exception as error:  # a stranger's folder: whatever PEFT trips over, the adapter is at fault
        raise AdapterError(
            f"{source.folder}: expected a mixture of this base model, got: {' '.join(str(error).split())}"
        ) from error
    return model
