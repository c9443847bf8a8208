"""The selected rows of a run as a data set for other trainers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kshot.config import TaskConfig
from kshot.corpus.export import DatasetForm, check_target, dataset_rows, push_dataset, write_dataset
from kshot.errors import ConfigError
from kshot.examples import read_examples
from kshot.run_folder import CONFIG, DATA_SUMMARY, SELECTED, RunFolder


@dataclass(frozen=True, slots=True)
class DataExport:
    """Where selected rows go, and in which form.

    Attributes:
        write: A .jsonl or .parquet file.
        push: A Hub data set, `owner/name`.
        form: `alpaca` where absent. Rationales stand before outputs where the task trains on them.

    Raises:
        ConfigError: The file has another suffix, or there is a form and nowhere to write to.
    """

    write: Path | None = None
    push: str | None = None
    form: DatasetForm | None = None

    def __post_init__(self) -> None:
        if self.form and self.write is None and self.push is None:
            raise ConfigError("a form is for rows that are written: add --write FILE or --push owner/name")
        if self.write is not None:
            check_target(self.write)

    def carry_out(self, run: RunFolder) -> dict[str, str]:
        """Write and push; return where the rows are, as `written` and `pushed`.

        Raises:
            ConfigError: No row was selected.
            RunFolderError: The run has no selected rows, or the file cannot be written.
            SourceError: The Hub refuses, or cannot be reached.
        """
        if self.write is None and self.push is None:
            return {}
        summary = run.read_json("data", DATA_SUMMARY)
        if not summary["selected"]:
            raise ConfigError("expected selected rows to write, got none: set data.budget")
        examples = read_examples(run.path("data", SELECTED))
        task = TaskConfig.model_validate(yaml.safe_load(run.path(CONFIG).read_text(encoding="utf-8")))
        rows = dataset_rows(examples, self.form or "alpaca", rationales=task.trains_on_rationales)
        done = {}
        if self.write is not None:
            write_dataset(self.write, rows)
            done["written"] = str(self.write)
        if self.push is not None:
            done["pushed"] = push_dataset(self.push, rows, card=_card(task, summary))
        return done


def _card(task: TaskConfig, summary: dict[str, Any]) -> str:
    """Return the card of a new data set: the task, how rows were chosen, and what each source gave."""
    lines = [
        "---",
        "tags: [kshot]",
        "configs: [{config_name: default, data_files: data/train.parquet}]",
        "---",
        "",
        f"# Rows selected for {task.name}",
        "",
        f"{summary['selected']} of {summary['pool_rows']} open rows, chosen by kshot for a few labelled "
        f"examples of the task: strategy {task.data.strategy}, largest cosine of two rows "
        f"{task.data.threshold:g}, encoder {Path(task.data.encoder).name}.",
        "Each row is under the licence of its source.",
        "",
        "| source | rows | mean relevance |",
        "|---|---|---|",
        *(f"| {one['source']} | {one['rows']} | {one['mean_relevance']} |" for one in summary["by_source"]),
        "",
    ]
    return "\n".join(lines)
