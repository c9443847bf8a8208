"""The batch that is being continued: rows join after their prompts were read, and leave when they end.

Every pass holds rows of many experts: the mixture's layers take `adapter_names`, one a row.

B rows   T tokens of a pass   V vocabulary
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from peft import PeftModel
from torch import Tensor

from kshot.batching import pad_left, position_ids
from kshot.prompts import TokenisedExample
from kshot.serving.cached_rows import CachedRows
from kshot.serving.last_gates import LastGates
from kshot.serving.row import Row


class RunningBatch:
    """Rows and what the model has read of them.

    Args:
        model: A base with its mixtures, in evaluation mode.
        pad_id: Any token.
        device: Of the model.

    Attributes:
        rows: Still going.
    """

    def __init__(self, model: PeftModel, pad_id: int, device: torch.device) -> None:
        self.rows: list[Row] = []
        self._model = model
        self._pad_id = pad_id
        self._device = device
        self._gates = LastGates(model)
        self._cached: CachedRows | None = None

    def add(self, newcomers: Sequence[Row]) -> None:
        """Read prompts in one pass, take the first token of each, and let those that go on join.

        If the pass fails, the rows of before are as they were.
        """
        prompts = [row.generation.prompt_ids for row in newcomers]
        batch = pad_left([TokenisedExample(ids, len(ids)) for ids in prompts], self._pad_id, self._device)
        cached = CachedRows(batch.attention_mask)
        going = self._advance(newcomers, batch.input_ids, position_ids(batch.attention_mask), cached)
        if len(going) < len(newcomers) and going:
            cached.select(self._places(going))
        if not going:
            return
        if self._cached is None:
            self._cached = cached
        else:
            self._cached.join(cached)
        self.rows += [newcomers[place] for place in going]

    def step(self) -> None:
        """Take the next token of every row; rows that end leave."""
        assert self._cached is not None  # there are rows
        positions_B1 = self._cached.add_column()
        ids_B1 = torch.tensor([[row.last_id] for row in self.rows], device=self._device)
        self._keep(self._advance(self.rows, ids_B1, positions_B1, self._cached))

    def drop_cancelled(self) -> None:
        """Let rows go that no one waits for."""
        self._keep([place for place, row in enumerate(self.rows) if not row.cancelled])

    def clear(self) -> list[Row]:
        """Let all rows go, and return them."""
        rows, self.rows, self._cached = self.rows, [], None
        return rows

    def _keep(self, going: list[int]) -> None:
        if len(going) == len(self.rows):
            return
        if not going or self._cached is None:
            self.clear()
            return
        self._cached.select(self._places(going))
        self.rows = [self.rows[place] for place in going]

    def _advance(
        self, rows: Sequence[Row], ids_BT: Tensor, positions_BT: Tensor, cached: CachedRows
    ) -> list[int]:
        """Run the model, hand each row its next token, and return the places of those that go on."""
        adapters = [row.generation.adapter for row in rows]
        tells_experts = any(row.generation.experts for row in rows)
        mask_BT = cached.mask_BS[:, -ids_BT.shape[1] :]
        with self._gates.recording(adapters, mask_BT) if tells_experts else nullcontext():
            output = self._model(
                input_ids=ids_BT,
                attention_mask=cached.mask_BS,
                position_ids=positions_BT,
                past_key_values=cached.cache,
                use_cache=True,
                logits_to_keep=1,
                adapter_names=adapters,
            )
        logits_BV = output.logits[:, -1]
        gates = [row.gates for row in rows]
        uses = self._gates.uses(adapters, gates) if tells_experts else [None] * len(rows)
        greedy_B = logits_BV.argmax(dim=-1).tolist()
        return [
            place
            for place, row in enumerate(rows)
            if row.advance(logits_BV[place], greedy_B[place], uses[place] if row.generation.experts else None)
        ]

    def _places(self, places: list[int]) -> Tensor:
        return torch.tensor(places, device=self._device)
