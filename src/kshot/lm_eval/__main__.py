"""lm-eval's own command, which then also knows `--model kshot`, and mixtures as `peft=` of `--model hf`.

Example:
    python -m kshot.lm_eval --model kshot --model_args expert=runs/arc --tasks arc_easy --apply_chat_template
"""

import sys

from kshot.errors import KshotError, MissingExtraError


def main() -> None:
    """Run the command.

    Raises:
        MissingExtraError: lm-eval is not installed.
    """
    try:
        from lm_eval.__main__ import cli_evaluate

        import kshot.lm_eval.model  # noqa: F401 - registers the model
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "lm_eval":
            raise
        raise MissingExtraError("lm-eval is not installed: pip install 'kshot[lm-eval]'") from error
    cli_evaluate()


if __name__ == "__main__":
    try:
        main()
    except KshotError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
