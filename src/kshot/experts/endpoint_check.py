"""Does a server apply the adapters that it lists? Then none of them predicts as its base does."""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import isclose

from kshot.bank import Adapter
from kshot.experts.asked_shots import AskedShot
from kshot.experts.endpoint_base import ServedBase
from kshot.experts.endpoint_client import CompletionsClient

_SAME = 1e-6  # relative, of an NLL: anything that an adapter changes is more


class BaseCheck:
    """Asks the base for the likelihood of one target, and compares every adapter's.

    It is also the first request of all, which finds out how the server gives log-probabilities.

    Args:
        client: Of the server.
        asked: The shots.
        model: Name of the base at the server; None where that is not known, and nothing is compared.
        stand_in: Asked in its place then.

    Raises:
        SourceError: The server gives no log-probabilities, cannot be reached, or refuses.
    """

    def __init__(
        self, client: CompletionsClient, asked: Sequence[AskedShot], model: str | None, stand_in: str
    ) -> None:
        lengths = {
            (shot, target): len(row)
            for shot, one in enumerate(asked)
            for target, row in enumerate(one.targets)
        }
        self.shot, self.target = max(lengths, key=lambda place: lengths[place])
        self._model = model
        self._nll = -sum(client.probe(model or stand_in, asked[self.shot].targets[self.target]))
        self._same: list[str] = []

    def compare(self, adapter: Adapter, nll: Sequence[float]) -> None:
        """Take note of an adapter's summed NLL of each target of the compared shot."""
        if isclose(nll[self.target], self._nll, rel_tol=_SAME):
            self._same.append(adapter.name)

    def report(self, say: Callable[[str], None]) -> None:
        """Name the adapters that are as the base."""
        if self._model is not None and self._same:
            say(
                f"{', '.join(self._same)}: the same likelihood as the base {self._model!r} to the last "
                "digit: the server does not apply them, or they change nothing"
            )


def base_name(models: Mapping[str, str | None], served: Collection[str], base: ServedBase) -> str | None:
    """Return what a server calls the base of some adapters; None where its list does not tell.

    Args:
        models: What it serves, each with its base where the server says it.
        served: Names of adapters.
        base: The base as it is known here.
    """
    parents = {models[name] for name in served if name in models} & set(models)
    others = [name for name in models if name not in served and models[name] is None]
    for candidates in (parents, {base.name, str(base.folder)} & set(models), others):
        if len(candidates) == 1:
            return next(iter(candidates))
    return None
