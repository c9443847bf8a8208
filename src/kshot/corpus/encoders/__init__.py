"""What turns texts into unit vectors: sentence encoders, static vectors, a base model's hidden states."""

from kshot.corpus.encoders.hidden_states import HiddenStateEncoder
from kshot.corpus.encoders.load import BASE_MODEL, STATIC, load_encoder
from kshot.corpus.encoders.protocol import TextEncoder
from kshot.corpus.encoders.sentence import SentenceEncoder
from kshot.corpus.encoders.static import StaticEncoder

__all__ = [
    "BASE_MODEL",
    "STATIC",
    "HiddenStateEncoder",
    "SentenceEncoder",
    "StaticEncoder",
    "TextEncoder",
    "load_encoder",
]
