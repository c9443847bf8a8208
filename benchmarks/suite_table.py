"""Draw docs/results.md from the stored cells of the benchmark; nothing is computed again.

python benchmarks/suite_table.py [RESULTS [PAGE]]
"""

import sys
from pathlib import Path

from suite.options import ABLATION_RESULTS, RESULTS, ROOT
from suite.recipe import read_recipes
from suite.table import draw

from kshot.atomic import write_text
from kshot.errors import KshotError

PAGE = ROOT / "docs" / "results.md"


def main(arguments: list[str]) -> int:
    """Write the page."""
    results = Path(arguments[0]) if arguments else RESULTS
    page = Path(arguments[1]) if len(arguments) > 1 else PAGE
    if not results.is_dir():
        print(
            f"expected cells in {results}, found none: python benchmarks/suite.py makes some", file=sys.stderr
        )
        return 1
    try:
        write_text(page, draw(results, read_recipes(), ABLATION_RESULTS))
    except KshotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
