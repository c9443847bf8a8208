"""Fetch the sets of the paper's bank and write their rows where `recipes/paper38.yaml` looks for them.

    cd benchmarks && PAPER38=FOLDER python -m suite.paper38 [NAME ...]

Sets and what their rows are made of are in recipes/paper38-sources.yaml. A set that is written already is
kept; one that cannot be had stops no other. Rows that are no example are left out and counted.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kshot.errors import ConfigError, ExampleError, KshotError
from kshot.examples import Example, example_from_row, write_examples
from kshot.rows import placed_rows
from suite.hub_rows import hub_example
from suite.recipe import HubSource

SOURCES = Path(__file__).parents[2] / "recipes" / "paper38-sources.yaml"
# Of all rows: some conversations have no answer, while a wrong column spoils every row.
MOST_LEFT_OUT = 0.5

Source = str | HubSource


def read_sources(path: Path = SOURCES) -> dict[str, Source]:
    """Return where each adapter's rows come from, by its name."""
    given: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {
        name: one if isinstance(one, str) else HubSource.model_validate(one) for name, one in given.items()
    }


def rows_of(name: str, source: Source, variables: Mapping[str, str]) -> tuple[list[Example], int]:
    """Read a set.

    Args:
        name: Of its adapter.
        source: Where its rows are.
        variables: For `$NAME` in its place.

    Returns:
        The examples, and how many rows were none.

    Raises:
        ConfigError: A variable is missing.
        SourceError: The set cannot be read.
        ExampleError: There are no rows, or more than half of them are no examples.
    """
    place = source if isinstance(source, str) else f"{source.data}:{source.train}"
    for variable, value in variables.items():
        place = place.replace(f"${variable}", value)
    if "$" in place:
        raise ConfigError(f"{name}: expected the variable in {place} to be set; set it to a folder")
    examples, first_error, left_out = [], None, 0
    for number, (_, row) in enumerate(placed_rows(place)):
        where = f"{name}-{number}"
        try:
            made = (
                example_from_row(row, where) if isinstance(source, str) else hub_example(source, row, where)
            )
        except ExampleError as error:
            first_error, left_out = first_error or error, left_out + 1
        else:
            examples.append(made)
    num_rows = left_out + len(examples)
    if not examples or left_out > MOST_LEFT_OUT * num_rows:
        raise ExampleError(
            f"{name}: expected examples in {place}, got {left_out} rows of {num_rows} that are none, first: "
            f"{first_error}; mend its source"
        )
    return examples, left_out


def main(arguments: list[str]) -> int:
    """Write the named sets, or all; return 1 if one is missing."""
    sources = read_sources()
    parser = argparse.ArgumentParser(prog="python -m suite.paper38", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of an adapter; all by default")
    names = parser.parse_args(arguments).names or list(sources)
    if strange := sorted(set(names) - set(sources)):
        parser.error(f"expected names of adapters in {SOURCES.name}, got {', '.join(strange)}")
    if not os.environ.get("PAPER38"):
        parser.error("expected the environment variable PAPER38; set it to a folder")
    folder, missing = Path(os.environ["PAPER38"]).resolve(), 0
    for name in names:
        target = folder / "rows" / f"{name}.jsonl"
        if target.is_file():
            print(f"{name}: kept")
            continue
        try:
            examples, left_out = rows_of(name, sources[name], {"PAPER38": str(folder)})
            target.parent.mkdir(parents=True, exist_ok=True)
            write_examples(target, examples)
        except KshotError as error:
            missing += 1
            print(f"{name}: {error}", file=sys.stderr)
        else:
            print(f"{name}: {len(examples)} rows, {left_out} left out")
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
