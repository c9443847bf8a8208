"""Training that stops when held-out rows no longer gain, and goes back to its best epoch."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class BestEpoch(TrainerCallback):
    """Measures the model after every epoch and keeps the trained weights of the best.

    The rows that decide are no longer quite unseen: the NLL of the best epoch is a little too good, the less
    so the fewer epochs there are to choose from.

    Args:
        model: Whose trainable weights are kept.
        measure: Mean NLL of held-out rows, as the model is now.
        patience: Epochs in a row without a lower NLL, after which training stops.

    Attributes:
        history: NLL after each epoch.
    """

    def __init__(self, model: nn.Module, measure: Callable[[], float], patience: int) -> None:
        self.history: list[float] = []
        self._model = model
        self._measure = measure
        self._patience = patience
        self._best: dict[str, Tensor] = {}

    @property
    def epoch(self) -> int:
        """The best epoch, counted from 1; 0 before the first is over."""
        return self.history.index(min(self.history)) + 1 if self.history else 0

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Measure, and stop training where patience is at its end."""
        training = self._model.training
        self._model.eval()
        self.history.append(self._measure())
        self._model.train(training)
        if self.epoch == len(self.history):
            self._best = {name: weight.detach().clone() for name, weight in self._trained()}
        elif len(self.history) - self.epoch >= self._patience:
            control.should_training_stop = True

    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights of the best epoch back."""
        for name, weight in self._trained():
            if name in self._best:
                weight.copy_(self._best[name])

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, one) for name, one in self._model.named_parameters() if one.requires_grad]
