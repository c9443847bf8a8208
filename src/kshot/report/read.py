"""Run folder -> contents of the report; nothing outside the folder is read."""

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml

from kshot.errors import RunFolderError
from kshot.report.contents import (
    TUNED_MIXTURE,
    Answer,
    Arm,
    Contents,
    Evaluation,
    Group,
    KeptRow,
    Missing,
    NearCopy,
    RankedAdapter,
    SelectedData,
    Selection,
    TestRow,
    Training,
)
from kshot.run_folder import (
    CONFIG,
    DATA_SUMMARY,
    ENVIRONMENT,
    MARK,
    PREDICTIONS,
    RESULTS,
    SCORES,
    SELECTED,
    SELECTION,
    SIMILARITY,
    STAGES,
    TRAINING,
    RunFolder,
)

T = TypeVar("T")

TRAINED = {"single": "best single expert", "expert": "mixture"}


def read_contents(run: RunFolder) -> Contents:
    """Read a run, finished or not.

    Raises:
        RunFolderError: There is no configuration, or a file is damaged or lacks something.
    """
    config = run.path(CONFIG)
    try:
        text = config.read_text(encoding="utf-8")
        settings = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunFolderError(f"expected {config}, cannot read it: {error}; run 'kshot run' first") from error
    with _parsing(config):
        named = {key: settings[key] for key in ("name", "base_model", "seed")}
        similarity, has_test = settings["experts"]["similarity"], bool(settings["test"])
    return Contents(
        **named,
        similarity=similarity,
        config=text,
        environment=run.read_json(ENVIRONMENT) if run.path(ENVIRONMENT).is_file() else {},
        seconds=_read_seconds(run),
        selection=_read_selection(run),
        data=_read_data(run),
        training=_read_training(run),
        evaluation=_read_evaluation(run, has_test=has_test),
    )


@contextmanager
def _parsing(path: Path) -> Iterator[None]:
    """Name the file that lacks something."""
    try:
        yield
    except KeyError as error:
        raise RunFolderError(
            f"{path}: expected the key {error}, found none; run 'kshot run' again in a new folder"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise RunFolderError(
            f"{path}: expected what 'kshot run' writes, got something else ({error}); "
            "run 'kshot run' again in a new folder"
        ) from error


def _missing(run: RunFolder, reason: str, command: str) -> Missing:
    return Missing(reason, f"kshot {command} task.yaml --out {shlex.quote(str(run.root))}")


def _read_seconds(run: RunFolder) -> dict[str, float]:
    """Return the wall time of each finished stage; the arms of `eval` count together."""
    seconds: dict[str, float] = {}
    for stage in STAGES:
        for mark in [run.path(stage, MARK), *sorted(run.path(stage).glob(f"*/{MARK}"))]:
            if mark.is_file():
                with _parsing(mark):
                    took = float(run.read_json(*mark.relative_to(run.root).parts)["seconds"])
                seconds[stage] = seconds.get(stage, 0.0) + took
    return seconds


def _read_selection(run: RunFolder) -> Selection | Missing:
    path = run.path("experts", SELECTION)
    if not path.is_file():
        return _missing(run, "The adapters are not scored yet", "select")
    chosen, scores = run.read_json("experts", SELECTION), run.read_json("experts", SCORES)
    cosines = run.read_json("experts", SIMILARITY)
    with _parsing(path.parent):
        return Selection(
            experts=tuple(chosen["experts"]),
            best_single=chosen["best_single"],
            method=chosen["method"],
            why=chosen["why"],
            candidates=tuple(one["name"] for one in chosen["candidates"]),
            ranking=tuple(_pick(RankedAdapter, one) for one in chosen["ranking"]),
            groups=tuple(_pick(Group, one | {"members": tuple(one["members"])}) for one in chosen["groups"]),
            num_groups=chosen["num_groups"],
            excluded=tuple(chosen["excluded"]),
            failures=chosen["failures"],
            flagged=chosen["flagged"],
            without_flagged=tuple((chosen["without_flagged"] or {"experts": ()})["experts"]),
            num_shots=scores["scores"][0]["n"],
            num_rationales=scores["scores"][0]["num_rationales"],
            similarity={
                name: dict(zip(cosines["names"], row, strict=True))
                for name, row in zip(cosines["names"], cosines["matrix"], strict=True)
            },
        )


def _read_data(run: RunFolder) -> SelectedData | Missing:
    path = run.path("data", DATA_SUMMARY)
    if not path.is_file():
        return _missing(run, "No open rows are selected yet", "augment")
    summary = run.read_json("data", DATA_SUMMARY)
    with _parsing(path):
        dropped = tuple(_pick(NearCopy, one) for one in summary["dropped"])
        kept = {key: summary[key] for key in ("pool_rows", "sources", "avoided", "without_rationale")}
    with _parsing(run.path("data", SELECTED)):
        lines = run.path("data", SELECTED).read_text(encoding="utf-8").split("\n")  # a text may hold U+2028
        rows = tuple(_kept_row(json.loads(line)) for line in lines if line)
    return SelectedData(
        rows=rows, duplicates_skipped=summary.get("duplicates_skipped", 0), dropped=dropped, **kept
    )


def _kept_row(row: Mapping[str, Any]) -> KeptRow:
    return KeptRow(
        id=row.get("id", ""),
        source=row["source"],
        relevance=row["relevance"],
        nearest_shot=row["nearest_shot"],
        request="\n\n".join(row[key] for key in ("instruction", "input") if row.get(key)),
        response=row["output"],
    )


def _read_training(run: RunFolder) -> tuple[Training, ...] | Missing:
    found = []
    for stage, title in TRAINED.items():
        path = run.path(stage, TRAINING)
        if path.is_file():
            result = run.read_json(stage, TRAINING)
            with _parsing(path):
                values = result | {"losses": tuple(result["losses"]), "stage": stage, "title": title}
                found.append(_pick(Training, values))
    return tuple(found) or _missing(run, "Nothing is trained yet", "train")


def _read_evaluation(run: RunFolder, *, has_test: bool) -> Evaluation | Missing:
    path = run.path("eval", RESULTS)
    if not path.is_file():
        tested = [file.parent.name for file in sorted(run.root.glob(f"eval/*/{PREDICTIONS}"))]
        so_far = ", ".join(tested) or "no arm"
        if not has_test:
            return _missing(
                run, "The task file names no test rows, so nothing is measured: add 'test'", "eval"
            )
        return _missing(run, f"Not every arm is tested yet (so far: {so_far})", "eval")
    table = run.read_json("eval", RESULTS)
    with _parsing(path):
        arms = tuple(
            _pick(Arm, one | {"key": one["arm"], "p_value": one["p_against_tuned_mixture"]})
            for one in table["table"]
        )
        if TUNED_MIXTURE not in [arm.key for arm in arms]:
            raise ValueError(f"no arm {TUNED_MIXTURE}")
    found = [run.read_json("eval", arm.key, PREDICTIONS) for arm in arms]
    with _parsing(path.parent):
        answered = [[(row["id"], row["request"], row["gold"]) for row in one["predictions"]] for one in found]
        if any(one != answered[0] for one in answered) or any(
            (arm.accuracy, arm.n) != (one["summary"]["accuracy"], one["summary"]["n"])
            for arm, one in zip(arms, found, strict=True)
        ):
            return _missing(run, "The result table is older than the answers it was made from", "eval")
        answers = zip(*([_pick_answer(row) for row in one["predictions"]] for one in found), strict=True)
        rows = tuple(TestRow(*asked, given) for asked, given in zip(answered[0], answers, strict=True))
    return Evaluation(arms, rows)


def _pick_answer(row: Mapping[str, Any]) -> Answer:
    return Answer(row["prediction"], row["correct"])


def _pick(kind: type[T], values: Mapping[str, Any]) -> T:
    """Build a dataclass of the fields it has; a file may hold more."""
    return kind(**{name: values[name] for name in kind.__dataclass_fields__})  # type: ignore[attr-defined]
