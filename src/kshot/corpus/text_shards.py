"""Embedding in shards: one pure function of a shard's texts, run here or by the workers of an engine.

Workers need not see the disk of the machine that the run is on: texts go to them, vectors come back and are
kept here, under the same keys, shard by shard. Ray's own `read_parquet(...).map_batches(...)` would read and
embed a pool as well, but knows neither what is embedded already nor the order of rows, so that the cache and
exact ties would have to be built around it; an engine needs nothing but this function of a shard.

N: texts, D: embedding size.
"""

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from kshot.config import EncoderDtype
from kshot.corpus.encoders import TextEncoder, load_encoder
from kshot.corpus.first_rows import Asked, FirstRows, ShardRows
from kshot.engine import Engine
from kshot.errors import SourceError
from kshot.language_model import LanguageModel

EMBED_BLOCK = 512  # texts of like length that are embedded between two steps of the progress bar

Done = Callable[[int, np.ndarray], None]


@dataclass(frozen=True, slots=True)
class TextShard:
    """Texts to embed together.

    Attributes:
        name: What messages call it.
        texts: Any number.
        rows: Which of them may be picked, where the first ones are asked for.
    """

    name: str
    texts: Sequence[str]
    rows: ShardRows | None = None

    def __str__(self) -> str:
        return f"the vectors of {self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedShard:
    """What became of a shard.

    Attributes:
        vectors: float16 (N, D), in the order of the texts.
        first: Its rows that are visited first, where that was asked.
    """

    vectors: np.ndarray
    first: FirstRows | None


@dataclass(frozen=True, slots=True)
class SpreadEncoder:
    """An encoder whose shards workers of an engine embed; a few texts, such as the shots, are embedded here.

    Attributes:
        here: The encoder.
        engine: Who has the workers.
        make: Gives a worker the same encoder; it is pickled.
    """

    here: TextEncoder
    engine: Engine
    make: Callable[[], TextEncoder]

    @property
    def name(self) -> str:
        """As of the encoder."""
        return self.here.name

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts in this process; see `TextEncoder.encode`."""
        return self.here.encode(texts)


def spread_encoder(
    here: TextEncoder,
    engine: Engine | None,
    reference: str,
    *,
    prefix: str = "",
    dtype: EncoderDtype = "float32",
    base_model: Callable[[], LanguageModel] | None = None,
) -> TextEncoder:
    """Return an encoder that workers embed shards with; `here` itself where there is no engine.

    Args:
        here: As `load_encoder` gave it.
        engine: Who has the workers.
        reference: As for `load_encoder`, which each worker calls; a folder must be on every machine.
        prefix: Likewise.
        dtype: Likewise.
        base_model: Likewise; it is pickled.
    """
    if engine is None:
        return here
    folder = Path(reference).expanduser()
    reference = str(folder.absolute()) if folder.is_dir() else reference  # workers start from another folder
    make = partial(load_encoder, reference, prefix=prefix, dtype=dtype, base_model=base_model)
    return SpreadEncoder(here, engine, make)


def embed_shards(
    shards: Sequence[TextShard],
    encoder: TextEncoder,
    num_dimensions: int,
    *,
    asked: Asked | None = None,
    done: Done = lambda index, places: None,
) -> Iterator[tuple[int, EmbeddedShard]]:
    """Yield the index of each shard with its vectors: in their order, or by workers as they are finished.

    Args:
        shards: A sequence that may make them when they are asked for.
        encoder: A `SpreadEncoder` for workers.
        num_dimensions: D.
        asked: What is asked of the shards that say which rows may be picked.
        done: Called with the index of a shard and the places of the texts just embedded.

    Raises:
        SourceError: The encoder gives values that are not finite, or a worker has another one.
        EngineError: Workers cannot be had, or are lost again and again.
    """
    if not isinstance(encoder, SpreadEncoder):
        embedder = Embedder(encoder, num_dimensions, asked)
        for index in range(len(shards)):
            yield index, embedder(shards[index], partial(done, index))
        return
    make_embedder = MakeEmbedder(encoder.make, encoder.name, num_dimensions, asked)
    with closing(encoder.engine.run(make_embedder, shards)) as results:
        for index, embedded in results:
            done(index, np.arange(len(embedded.vectors)))
            yield index, embedded


@dataclass(frozen=True, slots=True)
class MakeEmbedder:
    """Makes a worker that embeds shards.

    Attributes:
        make: Gives the encoder.
        name: Which it must have.
        num_dimensions: D.
        asked: As of `embed_shards`.
    """

    make: Callable[[], TextEncoder]
    name: str
    num_dimensions: int
    asked: Asked | None

    def __call__(self) -> "Embedder":
        """Load the encoder.

        Raises:
            SourceError: It is not to be had on this machine, or is another one.
        """
        try:
            encoder = self.make()
        except SourceError as error:
            raise SourceError(f"a worker on {platform.node()} cannot load the encoder: {error}") from error
        if encoder.name != self.name:
            raise SourceError(
                f"expected the encoder {self.name!r} as it is where the run was started, got "
                f"{encoder.name!r} on {platform.node()}: put the same model on every machine"
            )
        return Embedder(encoder, self.num_dimensions, self.asked)


class Embedder:
    """Embeds one shard after another."""

    def __init__(self, encoder: TextEncoder, num_dimensions: int, asked: Asked | None) -> None:
        self._encoder = encoder
        self._num_dimensions = num_dimensions
        self._asked = asked

    def __call__(
        self, shard: TextShard, done: Callable[[np.ndarray], None] = lambda places: None
    ) -> EmbeddedShard:
        """Return the vectors of a shard and, where it is asked, its first rows.

        Raises:
            SourceError: A vector is not finite.
        """
        vectors_ND = self._embed(shard.texts, done).astype(np.float16)
        first = None
        if self._asked is not None and shard.rows is not None:
            first = self._asked.first_rows(vectors_ND, shard.rows)
        return EmbeddedShard(vectors_ND, first)

    def _embed(self, texts: Sequence[str], done: Callable[[np.ndarray], None]) -> np.ndarray:
        """Embed texts in blocks of like length, which pad little."""
        vectors_ND = np.empty((len(texts), self._num_dimensions), dtype=np.float32)
        order = np.array(
            sorted(range(len(texts)), key=lambda place: (len(texts[place]), place)), dtype=np.int64
        )
        for start in range(0, len(order), EMBED_BLOCK):
            block = order[start : start + EMBED_BLOCK]
            vectors_ND[block] = self._encoder.encode([texts[place] for place in block])
            done(block)
        return vectors_ND
