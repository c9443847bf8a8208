"""The form in which texts are compared: what a copy may change without being another text."""

import re
import unicodedata

# Operators, brackets and digits carry the meaning of maths and code (2+3 is not 2*3), so they stay.
_SEPARATORS = re.compile(r"[\s.,;:!?'\"`‘’“”„«»–—]+")
# Chinese and Japanese write no spaces between words: there each letter counts as a word.
_WORDS = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+|[^\w\s]"
)


def fingerprint(text: str) -> str:
    """Return the text as it is compared: one case and letter form, single spaces, no sentence punctuation.

    Operators, brackets and digits stay, and so does a text of nothing but punctuation.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _SEPARATORS.sub(" ", folded).strip() or folded.strip()


def words_of(text: str) -> list[str]:
    """Return the words of a text's fingerprint; operators and brackets count as words."""
    return _WORDS.findall(fingerprint(text))
