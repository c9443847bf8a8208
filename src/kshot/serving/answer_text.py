"""The text of one answer as its tokens come: whole characters only, and never the text of a stop string."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # what a tokenizer decodes a part of a character to


class AnswerText:
    """Turns token ids into text that may be shown.

    Text is held back while it may turn out to be the beginning of a stop string, a part of a character or,
    under `strip`, white space at the end. What is taken adds up to the same text however it is taken.

    Args:
        tokenizer: Special tokens are left out of the text.
        stop: Texts that end the answer, not empty.
        strip: Leave out white space around the answer.

    Attributes:
        text: Decoded so far, held-back parts and stop string included.
        stopped: Whether a stop string was found.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], *, strip: bool) -> None:
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = stop
        self._strip = strip
        self._ids: list[int] = []
        self._context = 0  # ids from here on are decoded again with those that come
        self._read = 0  # ids before this one are in the text
        self._end = 0  # of what may be shown
        self._taken = 0

    def add(self, token_id: int) -> str:
        """Add a token and return what it adds to the text, "" while a character is not whole."""
        self._ids.append(token_id)
        added = self._decode_new()
        if added.endswith(UNFINISHED):
            return ""
        self._context, self._read = self._read, len(self._ids)
        self._append(added)
        return added

    def finish(self) -> str:
        """Say that no token follows; return what the last ones add, a part of a character as U+FFFD."""
        added = "" if self.stopped else self._decode_new()
        self._append(added)
        if not self.stopped:
            self._end = len(self.text)
        return added

    @property
    def shown(self) -> int:
        """Characters of the text that may be shown."""
        return self._end

    def take(self) -> str:
        """Return the text that may be shown and was not taken before."""
        end = self._end
        if self._strip:
            end = len(self.text[:end].rstrip())
            self._taken = max(self._taken, len(self.text) - len(self.text.lstrip()))
        taken = self.text[self._taken : end]
        self._taken = max(self._taken, end)
        return taken

    def _decode_new(self) -> str:
        """Decode with the ids before, since some tokenizers drop a space where a text begins."""
        before = self._decode(self._ids[self._context : self._read])
        return self._decode(self._ids[self._context :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)  # one list of ids, not several
        return text

    def _append(self, added: str) -> None:
        longest = max((len(one) for one in self._stop), default=0)
        search_from = max(0, len(self.text) - longest + 1)
        self.text += added
        found = [place for one in self._stop if (place := self.text.find(one, search_from)) >= 0]
        if found:
            self.stopped = True
            self._end = min(found)
        else:
            self._end = len(self.text) - self._held()

    def _held(self) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        longest = max((len(one) for one in self._stop), default=1) - 1
        for length in range(min(longest, len(self.text)), 0, -1):
            if any(one.startswith(self.text[-length:]) for one in self._stop):
                return length
        return 0
