"""The commands: parse, call, print; one file for each group of them."""

from kshot.cli.app import app, main

__all__ = ["app", "main"]
