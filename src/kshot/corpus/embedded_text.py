"""What is embedded of an example."""

from kshot.examples import Example

TEXT_FORM = 1  # another form of the text is another set of vectors
# MiniLM reads 256 tokens, about 1,000 characters, and a tokeniser reads a whole text before it cuts it:
# without a limit one row of 1 MB takes as long as hundreds of others. Each part has its own limit, so that
# a long request leaves room for the output in an encoder of longer reach.
MAX_CHARACTERS = 2_000


def text_of(example: Example) -> str:
    """Return what is embedded of an example: its request and its output, each cut at `MAX_CHARACTERS`.

    Both sides count: the same question with another kind of answer is another task.

    Reference: arXiv 2408.15915v2, section 3.3 (prompt and answer).
    """
    text = f"{example.request[:MAX_CHARACTERS]}\n{example.output[:MAX_CHARACTERS]}"
    # JSON can hold half a surrogate pair, tokenisers cannot
    return text.encode("utf-8", "replace").decode("utf-8")
