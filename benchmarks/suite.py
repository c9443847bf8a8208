"""The benchmark: is the expert really better, and than what? See `--help`.

    KSHOT_DATA=FOLDER python benchmarks/suite.py [--tasks A,B] [--arms A,B] [--seeds 0,1,2] [--base MODEL]

A cell is a task, an arm and a seed of shots; each is stored with its predictions in
benchmarks/results/suite/<task>/<arm>/seed<n>.json as soon as it is done, and a killed run goes on there.
`python benchmarks/suite_table.py` draws docs/results.md from the stored cells.
"""

import sys

from suite.options import cells_of, parse, run_plan, shared_work
from suite.plan import hours_by_cell, in_words
from suite.reproduce import reproduce_cells
from suite.runner import run_cells

from kshot.errors import KshotError
from kshot.terminal import quiet_libraries


def main(arguments: list[str]) -> int:
    """Run, plan or reproduce; return 1 if a cell failed or came out otherwise."""
    options = parse(arguments)
    shared, plan = shared_work(options), run_plan(options, arguments)
    cells = cells_of(options)
    try:
        if options.plan:
            print(in_words(hours_by_cell(cells, shared, plan)))
            return 0
        run = reproduce_cells if options.reproduce else run_cells
        return int(run(cells, shared, plan, lambda line: print(line, flush=True)) > 0)
    except KshotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    quiet_libraries()
    sys.exit(main(sys.argv[1:]))
