"""The command line: `coldframe VERB TARGET ...`. Thin: each verb asks the library and renders rows."""

from coldframe.cli.main import main

__all__ = ["main"]
