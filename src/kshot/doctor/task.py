"""What a task names: whether it is there and can be read. No weights are loaded and nothing is fetched."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, is_offline_mode

from kshot.bank import Bank
from kshot.config import TaskConfig, read_task
from kshot.corpus.encoders import BASE_MODEL, STATIC
from kshot.corpus.pool_source import source_files
from kshot.doctor.finding import Finding
from kshot.doctor.places import TIMEOUT_S
from kshot.errors import KshotError, reason_of
from kshot.examples import HUB_SCHEME, read_examples
from kshot.model_source import WHEEL_SCHEME, find_model
from kshot.tracking import check_tracker


def check_task(path: Path) -> list[Finding]:
    """Look at each file, model and bank that a task names; a mistake in one hides none in another."""
    try:
        task = read_task(path)
    except KshotError as error:
        return [Finding("task file", "problem", str(error))]
    return [Finding("task file", "ok", f"{path}: {task.name}"), *_parts(task)]


def _parts(task: TaskConfig) -> Iterator[Finding]:
    yield _tried("shots", lambda: _examples("shots", task.shots))
    if task.test is not None:
        test = task.test
        yield _tried("test rows", lambda: _examples("test rows", test))
    yield _tried("bank", lambda: _bank(task))
    yield _tried("base model", lambda: _model("base model", task.base_model))
    if task.data.budget:
        yield _tried("pool", lambda: _pool(task))
        for encoder in dict.fromkeys(filter(None, (task.data.encoder, task.data.shortlist_encoder))):
            if encoder not in (STATIC, BASE_MODEL):
                yield _tried("encoder", partial(_model, "encoder", encoder))
    yield _tried("training log", lambda: _tracker(task.training.report_to))


def _tried(name: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except KshotError as error:
        return Finding(name, "problem", str(error))


def _examples(name: str, source: str) -> Finding:
    examples = read_examples(source)
    with_rationale = sum(bool(example.rationale) for example in examples)
    details = {"rows": len(examples), "with_rationale": with_rationale}
    return Finding(name, "ok", f"{len(examples)} rows, {with_rationale} with a rationale", details=details)


def _bank(task: TaskConfig) -> Finding:
    remote = [one for one in task.bank if one.startswith(HUB_SCHEME)]
    local = [one for one in task.bank if one not in remote]
    num = len(Bank.open_all(local)) if local else 0
    found = f"{num} adapters" + (f" and {len(remote)} on the Hub" if remote else "")
    details = {"adapters": num, "on_the_hub": len(remote)}
    if num + len(remote) < task.experts.num_experts:
        advice = f"experts.num_experts is {task.experts.num_experts}: lower it or enlarge the bank"
        return Finding("bank", "problem", found, advice, details)
    return Finding("bank", "ok", found, details=details)


def _model(name: str, reference: str) -> Finding:
    folder = find_model(reference)
    if folder is not None:
        return Finding(name, "ok", f"{reference} is here", details={"folder": str(folder)})
    if reference.startswith(WHEEL_SCHEME):
        return Finding(name, "warning", f"{reference} is not here yet", "the first run fetches it with pip")
    if is_offline_mode():
        return Finding(
            name, "problem", f"{reference} is not here", "HF_HUB_OFFLINE keeps it from being fetched"
        )
    hub_id, _, revision = reference.partition("@")
    try:
        HfApi().model_info(hub_id, revision=revision or None, timeout=TIMEOUT_S)
    except Exception as error:  # the Hub client raises its own, its HTTP library's and the standard kinds
        found = f"{reference} is neither a folder, nor in the Hub cache, nor found on the Hub"
        return Finding(name, "problem", f"{found}: {reason_of(error)}", "check the name and the network")
    return Finding(
        name, "warning", f"{reference} is on the Hub, and not here yet", "the first run fetches it"
    )


def _pool(task: TaskConfig) -> Finding:
    files = [file for source in task.pool for file in source_files(source)]
    remote = [file for file in files if file.is_hub]
    size = sum(file.num_bytes() for file in files if not file.is_hub)
    found = f"{len(files) - len(remote)} files, {size / 1e6:,.1f} MB"
    found += f", {len(remote)} data sets of the Hub" if remote else ""
    return Finding(
        "pool", "ok", found, details={"files": len(files), "bytes": size, "on_the_hub": len(remote)}
    )


def _tracker(report_to: str) -> Finding:
    check_tracker(report_to)
    return Finding("training log", "ok", report_to)
