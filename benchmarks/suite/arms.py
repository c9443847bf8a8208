"""The arms of the benchmark by name; each is imported when it is first run."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import MappingProxyType
from typing import Any, Literal, cast

from suite.arm import Arm
from suite.own_settings import OWN, PAPER

Sees = Literal["shots", "test", "train"]


@dataclass(frozen=True)
class ArmInfo:
    """One arm.

    Attributes:
        title: In tables.
        function: `module:function` of a `suite.arm.Arm`.
        is_tuned: Whether it is trained, and so wants a learning rate from the grid.
        sees: `shots`: shots and open rows; `test`: its scores of the bank are those on test rows; `train`:
            its open rows are the task's training set. The last two are bounds, not methods.
        is_judged: Whether folds of the shots judge it beside others, so that kshot may choose it.
        chosen_from: Arms of which this one is the best by folds of the shots; it has no function.
        passes: What a token of training costs, in passes of a plain LoRA; for the plan alone.
        settings: Of the arm; the function takes them as its second argument.
    """

    title: str
    function: str
    is_tuned: bool = False
    sees: Sees = "shots"
    is_judged: bool = False
    chosen_from: tuple[str, ...] = ()
    passes: float = 1.0
    settings: Mapping[str, Any] | None = None

    @property
    def is_bound(self) -> bool:
        """Whether it sees what no method may."""
        return self.sees != "shots"

    def load(self) -> Arm:
        """Import the function."""
        module, _, name = self.function.partition(":")
        function = getattr(import_module(module), name)
        return cast(Arm, function if self.settings is None else partial(function, settings=self.settings))


OWN_ARM, BASE_ARM, ORACLE_ARM = "kshot", "base", "oracle"
MIXTURE_ARM = "kshot_mixture"
CHOICES = (BASE_ARM, "best_single", "uniform", "best_single_tuned", MIXTURE_ARM)  # the product's own

ARMS: Mapping[str, ArmInfo] = MappingProxyType(
    {
        BASE_ARM: ArmInfo("base model", "suite.own.start:build_base", is_judged=True),
        "few_shot": ArmInfo("few-shot prompting", "suite.own.start:build_few_shot"),
        "random_tuned": ArmInfo("random expert, tuned", "suite.own.single:build_random_tuned", is_tuned=True),
        "fresh": ArmInfo("LoRA from scratch, one expert's rank", "suite.own.fresh:build_one", is_tuned=True),
        "fresh_same_count": ArmInfo(
            "LoRA from scratch, the mixture's parameter count",
            "suite.own.fresh:build_same_count",
            is_tuned=True,
            settings=OWN,
        ),
        "best_single": ArmInfo(
            "best single expert by the shots", "suite.own.single:build_best", is_judged=True
        ),
        "best_single_tuned": ArmInfo(
            "best single expert, tuned", "suite.own.single:build_best_tuned", is_tuned=True, is_judged=True
        ),
        ORACLE_ARM: ArmInfo("oracle: best expert by test rows", "suite.own.single:build_oracle", sees="test"),
        "full": ArmInfo(
            "ceiling: LoRA on the training set", "suite.own.fresh:build_one", is_tuned=True, sees="train"
        ),
        "uniform": ArmInfo("uniform average, exact", "suite.peers.uniform:build", is_judged=True),
        "ties": ArmInfo("TIES (PEFT)", "suite.peers.merging:build_ties"),
        "dare": ArmInfo("DARE (PEFT)", "suite.peers.merging:build_dare"),
        "lorahub": ArmInfo("LoRAHub", "suite.peers.lorahub:build"),
        "arrow": ArmInfo("Arrow (PEFT)", "suite.peers.arrow:build"),
        "arrow_tuned": ArmInfo(
            "Arrow (PEFT), experts tuned", "suite.peers.arrow:build_tuned", is_tuned=True, passes=1.3
        ),
        "xlora": ArmInfo("X-LoRA (PEFT)", "suite.peers.xlora:build", is_tuned=True, passes=2.0),
        "smear": ArmInfo("SMEAR-style soft merging", "suite.peers.smear:build", is_tuned=True, passes=1.5),
        "kshot_paper": ArmInfo(
            "kshot, the paper's settings", "suite.own.mixture:build", is_tuned=True, settings=PAPER
        ),
        MIXTURE_ARM: ArmInfo(
            "kshot's mixture, its own settings",
            "suite.own.mixture:build",
            is_tuned=True,
            is_judged=True,
            settings=OWN,
        ),
        OWN_ARM: ArmInfo("kshot: what folds of the shots choose", "", chosen_from=CHOICES),
    }
)
