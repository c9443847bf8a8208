"""Shopping word problems: the demo's target. No reasoning-gym family, and in no adapter of the bank.

A row needs what several families teach (products, sums, a list of counted things), and is none of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from kshot.errors import ConfigError
from kshot.examples import Example
from kshot.procedural.steps import multiply_steps, sum_steps

ITEMS = {  # singular with its article -> plural
    "an apple": "apples", "a book": "books", "a bottle": "bottles", "a brush": "brushes", "a cake": "cakes",
    "a candle": "candles", "a cup": "cups", "a flower": "flowers", "a hat": "hats", "a kite": "kites",
    "a lamp": "lamps", "a lemon": "lemons", "a melon": "melons", "a mug": "mugs", "a notebook": "notebooks",
    "an orange": "oranges", "a pen": "pens", "a pencil": "pencils", "a pie": "pies", "a pizza": "pizzas",
    "a plate": "plates", "a poster": "posters", "a ruler": "rulers", "a sandwich": "sandwiches",
    "a scarf": "scarves", "a shirt": "shirts", "a spoon": "spoons", "a toy": "toys",
    "an umbrella": "umbrellas",
}  # fmt: skip
NAMES = (
    "Amir", "Anna", "Ben", "Carla", "Chen", "David", "Elena", "Fatima", "George", "Hana", "Ivan", "Julia",
    "Kofi", "Lena", "Maria", "Nina", "Omar", "Paul", "Rosa", "Sam", "Tara", "Yuki",
)  # fmt: skip
SHOPS = ("corner shop", "market", "mall", "fair", "school shop", "supermarket", "gift shop", "village store")

TEMPLATES = (
    "{Costs}. How much do {bought} cost in total?",
    "{name} buys {each}. How much does {name} pay in total?",
    "At the {shop}, {costs}. {name} wants {bought}. How much will that be?",
    "{name} goes to the {shop} and picks {bought}. There, {costs}. What is the total price in dollars?",
    "How many dollars does {name} need for {bought}, if {costs}?",
    "The {shop} sells {sold}. {name} takes {bought}. How much is the bill?",
    "{name} ordered {each} from the {shop}. How much did the order cost?",
    "{name}'s shopping list says {bought}. {Costs}. How much money will {name} spend?",
)


@dataclass(frozen=True, slots=True)
class _Purchase:
    item: str
    count: int
    price: int

    @property
    def bought(self) -> str:
        return f"{self.count} {ITEMS[self.item]}"


def draw_shopping(*, size: int, seed: int) -> list[Example]:
    """Draw distinct shopping problems.

    Args:
        size: Rows to draw, at least 1; several hundred thousand exist.
        seed: At least 0; the same rows come from the same seed in every process.

    Returns:
        Examples with `output` "The answer is {answer}." and the steps as rationale.

    Raises:
        ConfigError: `size` or `seed` out of range.
    """
    if size < 1 or seed < 0:
        raise ConfigError(f"expected size >= 1 and seed >= 0, got size {size} and seed {seed}")
    rng = Random(seed)
    examples: dict[str, Example] = {}
    while len(examples) < size:
        example = _draw(rng, f"shopping-{seed}-{len(examples)}")
        examples.setdefault(example.instruction, example)
    return list(examples.values())


def _draw(rng: Random, row_id: str) -> Example:
    items = rng.sample(list(ITEMS), k=2)
    purchases = [_Purchase(item, rng.randint(2, 9), _price(rng)) for item in items]
    costs = [purchase.count * purchase.price for purchase in purchases]
    steps = [step for purchase in purchases for step in multiply_steps(purchase.count, purchase.price)]
    steps += sum_steps(costs)
    return Example(
        instruction=_fill(rng.choice(TEMPLATES), purchases, rng),
        output=f"The answer is {sum(costs)}.",
        answer=str(sum(costs)),
        rationale=" ".join(steps),
        id=row_id,
    )


def _price(rng: Random) -> int:
    """One digit in nine of ten draws, else a round price that is still one step."""
    return rng.choice((10, 20, 30)) if rng.random() < 0.1 else rng.randint(2, 9)


def _fill(template: str, purchases: Sequence[_Purchase], rng: Random) -> str:
    costs = _list([f"{one.item} costs {one.price} dollars" for one in purchases])
    return template.format(
        name=rng.choice(NAMES),
        shop=rng.choice(SHOPS),
        costs=costs,
        Costs=costs[0].upper() + costs[1:],
        bought=_list([one.bought for one in purchases]),
        each=_list([f"{one.bought} at {one.price} dollars each" for one in purchases]),
        sold=_list([f"{ITEMS[one.item]} for {one.price} dollars each" for one in purchases]),
    )


def _list(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
