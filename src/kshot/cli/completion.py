"""Shell completion as a script that is written once: TAB starts no Python, which would import torch."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import typer

COMPLETION = typer.Typer()

_BASH = """\
_kshot() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" command="" word choices=""
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "${{command:+$command }}$word" in
            {commands}) command="${{command:+$command }}$word" ;;
        esac
    done
    case "$command" in
{cases}
    esac
    case "$command:$current" in
        {groups}|*:-*) COMPREPLY=($(compgen -W "$choices" -- "$current")) ;;
        *) COMPREPLY=() ;;
    esac
}}
complete -o default -F _kshot kshot
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"
Shell = Literal["bash", "zsh", "fish"]


@COMPLETION.command("completion")
def completion_command(
    context: typer.Context, shell: Annotated[Shell, typer.Argument(help="bash, zsh or fish.")]
) -> None:
    """Print a script that lets a shell complete commands and options.

    Example: kshot completion bash > ~/.local/share/bash-completion/completions/kshot
    """
    typer.echo(completion_script(context.find_root().command, shell), nl=False)


def completion_script(root: Any, shell: Shell) -> str:
    """Return the script.

    Args:
        root: The command line as a whole.
        shell: Which shell it is for.
    """
    words = dict(_words(root))
    if shell == "fish":
        return "".join(f"{line}\n" for line in _fish(words))
    bash = _BASH.format(
        commands="|".join(f'"{path}"' for path in words if path),
        cases="\n".join(f'        "{path}") choices="{" ".join(found)}" ;;' for path, found in words.items()),
        groups="|".join(f'"{path}":*' for path, found in words.items() if not found[0].startswith("-")),
    )
    return (_ZSH if shell == "zsh" else "") + bash


def _words(command: Any, path: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield what may follow each command: the commands of a group first, then options."""
    inside: Mapping[str, Any] = getattr(command, "commands", {})
    options = [
        max(parameter.opts, key=len) for parameter in command.params if parameter.opts[0].startswith("-")
    ]
    yield path, [*inside, *options, "--help"]
    for name, one in inside.items():
        yield from _words(one, f"{path} {name}".strip())


def _fish(words: Mapping[str, list[str]]) -> Iterator[str]:
    for path, found in words.items():
        names = [one for one in found if not one.startswith("-")]
        seen = " ".join(f"; and __fish_seen_subcommand_from {name}" for name in path.split())
        alone = "" if not names or not path else f"; and not __fish_seen_subcommand_from {' '.join(names)}"
        condition = f"true{seen}{alone}" if path else "__fish_use_subcommand"
        if names:
            yield f"complete -c kshot -f -n '{condition}' -a '{' '.join(names)}'"
        for option in found:
            if option.startswith("--"):
                yield f"complete -c kshot -n '{condition}' -l {option.removeprefix('--')}"
