"""The shots that scoring is tested on, to be answered and to be chosen from."""

from kshot.examples import Example

SHOTS = [
    Example("add one and two", "three", answer="three", rationale="one and two is three", id="a"),
    Example("say cat", "the cat", id="b"),
    Example("count", "one two three four five", rationale="start at one", id="c"),
]
QUESTIONS = [
    Example(
        "Which? A: yes B: no", "B", choices=("yes", "no, not at all"), label=1, question="Which one?", id="q"
    ),
    Example("What? A: 1 B: 2 C: 3", "A", choices=("1", "2", "3"), label=0, question="What?", rationale="so"),
]
