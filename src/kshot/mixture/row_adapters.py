"""PEFT's `adapter_names`: which mixture each row of a batch uses.

B batch   T tokens   D inputs of a module
"""

from collections.abc import Sequence

import torch

from kshot.errors import ConfigError

BASE_ROWS = "__base__"  # PEFT's name for rows without an adapter


class RowAdapters:
    """A mixture for each row, in place of the active ones.

    Args:
        names: One a row of the call's batch; `BASE_ROWS` is none.
        may_repeat: Whether the passes of the call may hold each row several times side by side, as generation
            with beams, or of several sequences, does.
    """

    def __init__(self, names: Sequence[str], *, may_repeat: bool) -> None:
        self.names = list(names)
        self._may_repeat = may_repeat
        self._rows_by_size: dict[int, dict[str, torch.Tensor]] = {}

    def rows_in(self, x_BTD: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the rows of each mixture in a module's input, rows without one left out.

        Raises:
            ConfigError: The input has other rows than the call.
        """
        num_rows = len(x_BTD)
        if num_rows not in self._rows_by_size:
            self._rows_by_size[num_rows] = self._rows(num_rows, x_BTD)
        return {name: rows.to(x_BTD.device) for name, rows in self._rows_by_size[num_rows].items()}

    def _rows(self, num_rows: int, x_BTD: torch.Tensor) -> dict[str, torch.Tensor]:
        repeats, left = divmod(num_rows, len(self.names) or 1)
        if left or not repeats or (repeats > 1 and (x_BTD.ndim != 3 or not self._may_repeat)):
            raise ConfigError(
                f"expected one of adapter_names a row, {num_rows}, got {len(self.names)}: name the base's "
                f"rows {BASE_ROWS!r}, and leave modules out of the mixture whose rows are not the batch's"
            )
        own: dict[str, list[int]] = {}
        for row in range(num_rows):
            own.setdefault(self.names[row // repeats], []).append(row)
        return {name: torch.tensor(rows) for name, rows in sorted(own.items()) if name != BASE_ROWS}
