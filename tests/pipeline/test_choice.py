"""What is handed over: judged on shots that were not trained on, and obeyed by all that follows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from kshot.config import EvaluationConfig, read_task
from kshot.errors import ConfigError, RunFolderError
from kshot.language_model import LanguageModel
from kshot.pipeline import RunResult, export_expert, run
from kshot.pipeline.choice_stage import choice_reads, run_choice
from kshot.pipeline.folds import KEPT, deal
from kshot.pipeline.inputs import Inputs
from kshot.progress import Silent
from kshot.prompts import PromptTemplate
from kshot.run_folder import RunFolder, adapter_to_use, chosen_adapter
from kshot.serving.served_models import find_expert, load_served

from ..tiny_task import change_task, tiny_rows, write_rows, write_tiny_task

ARMS = ["base", "best_single", "uniform_mixture", "tuned_mixture"]


@pytest.fixture
def task(
    tmp_path: Path,
    tiny_model_folder: Path,
    lora_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The tiny task with 8 shots, which is enough for folds."""
    monkeypatch.setenv("KSHOT_HOME", str(tmp_path / "home"))
    task = write_tiny_task(tmp_path / "task", tiny_model_folder, lora_folder)
    write_rows(task.parent / "shots.jsonl", tiny_rows(8))
    change_task(task, data__budget=4)
    return task


def _choice(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "choice" / "choice.json").read_text())
    return found


def _said(out: Path) -> list[str]:
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    said = [event["text"] for event in events if event["event"] == "said" and event["stage"] == "choice"]
    return [text for text in said if not text.startswith("loading the base model")]


class _StoppedError(Exception):
    """As Ctrl-C, in the middle."""


class _StopsAt(Silent):
    """Stops when a bar of that name begins."""

    def __init__(self, text: str) -> None:
        self._text = text

    def bar(self, text: str, total: int) -> Any:
        if text == self._text:
            raise _StoppedError
        return super().bar(text, total)


def _files(out: Path) -> list[Any]:
    files = [json.loads((out / "choice" / name).read_text()) for name in ("choice.json", "held_out.json")]
    assert files[0].pop("seconds") >= 0
    return files


def test_a_mixture_that_learns_is_chosen_however_often_it_is_stopped(task: Path, tmp_path: Path) -> None:
    out, written = tmp_path / "run", set()
    for _ in range(2):
        with pytest.raises(_StoppedError):
            run(task, out, until="training", progress=_StopsAt("tuning the mixture without fold 2 of 2"))
        (kept,) = out.glob(f"{KEPT}*")
        written.add((kept / "expert-1.json").stat().st_mtime_ns)
        assert [path.name for path in kept.iterdir()] == ["expert-1.json"]
    assert chosen_adapter(RunFolder.read_only(out)) == out / "expert" / "adapter"
    assert len(written) == 1  # a fold that is done is not trained again
    result = run(task, out)
    assert not kept.exists()

    choice = _choice(out)
    assert (choice["chosen"], choice["title"], choice["folds"]) == ("tuned_mixture", "tuned mixture", 2)
    assert [one["arm"] for one in choice["arms"]] == ARMS
    losses = {one["arm"]: one["loss"] for one in choice["arms"]}
    assert min(losses, key=lambda arm: losses[arm]) == "tuned_mixture"
    assert all(one["stderr"] > 0 and one["accuracy"] is None for one in choice["arms"])
    assert result.expert == chosen_adapter(RunFolder.read_only(out)) == out / "expert" / "adapter"
    assert not (out / "choice" / "adapter").exists()
    assert _said(out) == [f"chosen: tuned mixture; {choice['reason']}"]

    held_out = json.loads((out / "choice" / "held_out.json").read_text())
    assert [row["id"] for row in held_out] == [f"row-{index}" for index in range(8)]
    assert sorted(row["fold"] for row in held_out) == [1] * 4 + [2] * 4
    assert losses["base"] == pytest.approx(sum(row["arms"]["base"]["loss"] for row in held_out) / 8)
    results = json.loads((out / "eval" / "results.json").read_text())
    assert results["chosen"] == {key: value for key, value in choice.items() if key != "seconds"}
    assert [one["arm"] for one in results["table"]] == [*ARMS[:2], "best_single_tuned", *ARMS[2:]]

    assert result.choice == results["chosen"]
    card = (out / "expert" / "adapter" / "README.md").read_text()
    assert f"\n\nIts run hands it over: {choice['reason']}.\n\n| expert |" in card
    assert "hands over another arm, the tuned mixture: " in (out / "single/adapter/README.md").read_text()

    before = _files(out)
    shutil.rmtree(out / "choice")
    run(task, out, until="training")  # undisturbed
    assert _files(out) == before


def test_no_shot_of_a_fold_is_trained_on(task: Path, tmp_path: Path) -> None:
    change_task(task, test=None, evaluation__folds=0)
    out = tmp_path / "run"
    run(task, out, until="training")
    change_task(task, evaluation__folds=2, evaluation__fold_single=True)
    inputs = Inputs(read_task(task), Silent())
    lm, seen = inputs.lm, [set[str]()]
    ids = {
        lm.template.encode_example(shot, "instruction", rationale=True).input_ids: shot.id
        for shot in inputs.shots
    }

    def watch(module: torch.nn.Module, args: object, options: dict[str, Tensor]) -> None:
        if not module.training:
            if seen[-1]:
                seen.append(set())  # a training has ended: the next one starts anew
            return
        for row, mask in zip(options["input_ids"], options["attention_mask"], strict=True):
            seen[-1].add(ids.get(tuple(row[mask.bool()].tolist()), "selected row"))

    lm.model.register_forward_pre_hook(watch, with_kwargs=True)
    folder = RunFolder(out)
    with folder.stage("choice", choice_reads(inputs, folder)) as draft:
        run_choice(inputs, folder, draft)

    trainings = [one for one in seen if one]
    held_out = json.loads((out / "choice" / "held_out.json").read_text())
    folds = [{row["id"] for row in held_out if row["fold"] == fold} for fold in (1, 2)]
    assert [len(fold) for fold in folds] == [4, 4]
    everything = {shot.id for shot in inputs.shots} | {"selected row"}
    assert trainings == [everything - fold for fold in folds * 2]  # of the single expert, then of the mixture
    assert [one["arm"] for one in _choice(out)["arms"]] == [*ARMS[:2], "best_single_tuned", *ARMS[2:]]


def _harmful(task: Path, tmp_path: Path, **changes: Any) -> RunResult:
    """Run with a learning rate that destroys what it touches."""
    change_task(task, training__learning_rate=1.0, **changes)
    return run(task, tmp_path / "run")


def test_a_harmful_mixture_is_not_handed_over(
    task: Path, tmp_path: Path, tiny_model_folder: Path, lora_folder: Callable[..., Path]
) -> None:
    _teach_base(task, tiny_model_folder)
    result = _harmful(task, tmp_path)
    out = tmp_path / "run"
    choice = _choice(out)
    assert choice["chosen"] == "base"
    assert "the tuned mixture has a greater loss than the base model" in choice["reason"]
    assert result.expert is None
    assert _said(out) == [f"chosen: no adapter is handed over: the base model is best; {choice['reason']}"]
    assert (out / "expert" / "adapter" / "adapter_model.safetensors").is_file()
    for hand_over in (lambda: export_expert(out, tmp_path / "lora"), lambda: find_expert(str(out))):
        with pytest.raises(RunFolderError, match=r"which chose the base model .*evaluation\.folds: 0"):
            hand_over()
    assert json.loads((out / "eval" / "results.json").read_text())["chosen"]["chosen"] == "base"
    card = out / "expert" / "adapter" / "README.md"
    told = f"Its run hands over no adapter but the base model as it is: {choice['reason']}."
    assert told in card.read_text()

    change_task(task, evaluation__folds=0)
    again = run(task, out)
    assert again.expert == out / "expert" / "adapter"
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    last = max(place for place, event in enumerate(events) if event.get("until"))
    started = [event["stage"] for event in events[last + 1 :] if event["event"] == "started"]
    assert started == ["choice"]  # nothing is trained or tested again
    assert _choice(out)["reason"] == "not compared with other arms, as evaluation.folds is 0"
    assert "Its run hands it over: not compared with other arms" in card.read_text()


def _train(model: torch.nn.Module, template: PromptTemplate) -> None:
    """Train on rows of the task that are neither shots nor test rows."""
    optimiser = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=0.01)
    for row in tiny_rows(60, 20):
        tokens = template.encode(row["instruction"], f"{row['rationale']}\n{row['output']}")
        labels = torch.tensor([tokens.labels])
        model(input_ids=torch.tensor([tokens.input_ids]), labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()


def _teach_base(task: Path, tiny_model_folder: Path) -> None:
    """Give the task a base that is good at it as it is."""
    lm, folder = LanguageModel.load(str(tiny_model_folder), device="cpu"), task.parent / "base"
    _train(lm.model, lm.template)
    lm.model.save_pretrained(str(folder))
    lm.tokenizer.save_pretrained(str(folder))
    change_task(task, base_model=str(folder))


def _teach_expert(task: Path, tiny_model_folder: Path, name: str) -> None:
    """Make an adapter of the bank good at the task."""
    lm, folder = LanguageModel.load(str(tiny_model_folder), device="cpu"), task.parent / "bank" / name
    model = PeftModel.from_pretrained(lm.model, folder, is_trainable=True)
    _train(model, lm.template)
    model.save_pretrained(folder)


def test_a_good_expert_is_handed_over_in_place_of_a_harmful_mixture(
    task: Path, tmp_path: Path, tiny_model_folder: Path
) -> None:
    _teach_expert(task, tiny_model_folder, "cc")
    change_task(task, test=None)
    result = _harmful(task, tmp_path)
    out = tmp_path / "run"
    choice = _choice(out)
    assert choice["chosen"] == "best_single"
    adapter = out / "choice" / "adapter"
    assert result.expert == adapter_to_use(RunFolder.read_only(out)) == adapter
    card = (adapter / "README.md").read_text()
    assert f"one LoRA adapter,\nas it is: {choice['reason']}." in card
    assert "| cc |" in card
    tuned = (out / "expert" / "adapter" / "README.md").read_text()
    assert "Its run hands over another arm, the best single expert (by the shots): on shots" in tuned

    ids = torch.tensor([[3, 40, 50]])
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    bank = PeftModel.from_pretrained(base, task.parent / "bank" / "cc").eval()
    with torch.no_grad():
        wanted = bank(input_ids=ids).logits
    exported = export_expert(out, tmp_path / "lora")
    assert exported.loss is None  # an adapter as it is has no router to lose
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    with torch.no_grad():
        got = PeftModel.from_pretrained(fresh, exported.folder).eval()(input_ids=ids).logits
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)

    source = find_expert(str(out))
    assert (source.name, source.folder, source.base_model) == ("tiny", adapter, str(tiny_model_folder))
    lm, models = load_served([source], device="cpu")
    with torch.no_grad():
        served = lm.model(input_ids=ids, adapter_names=[models[0].adapter]).logits
    torch.testing.assert_close(served, wanted, rtol=0, atol=1e-4)


def test_a_choice_from_before_the_last_training_is_not_used(task: Path, tmp_path: Path) -> None:
    change_task(task, test=None, evaluation__folds=0)
    out = tmp_path / "run"
    run(task, out, until="training")
    stale = (out / "choice" / "choice.json").read_text()
    change_task(task, training__learning_rate=0.02, evaluation__folds=2)
    with pytest.raises(_StoppedError):
        run(task, out, until="training", progress=_StopsAt("tuning the mixture without fold 1 of 2"))
    assert (out / "choice" / "choice.json").read_text() == stale
    with pytest.raises(RunFolderError, match="a choice from before the last training"):
        chosen_adapter(RunFolder.read_only(out))
    (out / "choice" / "choice.json").write_text('{"chosen": "../../elsewhere", "expert": ""}')
    with pytest.raises(RunFolderError, match="expected what 'kshot run' writes"):
        chosen_adapter(RunFolder.read_only(out))


def test_few_shots_are_not_put_aside_unasked(task: Path, tmp_path: Path) -> None:
    choices = {"choices": ["one two", "three", "four five six"], "label": 0}
    write_rows(task.parent / "shots.jsonl", [row | choices for row in tiny_rows(5)])
    change_task(task, test=None, scorer="multiple_choice", data__budget=0)
    run(task, tmp_path / "run", until="training")
    choice = _choice(tmp_path / "run")
    assert (choice["chosen"], choice["folds"], choice["arms"]) == ("tuned_mixture", 0, [])
    assert "5 shots are too few" in choice["reason"]

    change_task(task, evaluation__folds=3, evaluation__fold_epochs=1.0)
    run(task, tmp_path / "run", until="training")
    choice = _choice(tmp_path / "run")
    assert (choice["folds"], choice["unit"]) == (3, "nats a character")
    for one in choice["arms"]:
        assert 0 <= one["accuracy"] <= 1
        assert one["accuracy"] < 1 or one["loss"] < 0

    change_task(task, evaluation__folds=6)
    with pytest.raises(ConfigError, match=r"evaluation\.folds must be at most 5, the number of shots, got 6"):
        run(task, tmp_path / "run", until="training")


def test_folds_are_even_and_drawn_from_the_seed() -> None:
    dealt = deal(11, 3, seed=1)
    assert sorted(dealt.count(fold) for fold in range(3)) == [3, 4, 4]
    assert dealt == deal(11, 3, seed=1) != deal(11, 3, seed=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folds": 1}, "must be 0, or 2 and more, got 1"),
        ({"folds": 0, "fold_epochs": 1.0}, "evaluation.fold_epochs has no effect"),
        ({"folds": 0, "fold_single": True}, "evaluation.fold_single has no effect"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**settings)
