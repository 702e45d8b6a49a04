"""The entry point: runs a verb, and turns every error of ours into one line and an exit status.

Exit status: 0 done, 1 the guest or the file does not allow it, 2 the call's words are wrong, 130 Ctrl-C.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path

import typer

from coldframe.cli.app import app_for
from coldframe.errors import ColdframeError

INTERRUPTED = 130
_COLLECT_EVERY = 20_000
"""New objects between two looks for garbage: modules make many, and none of them is; the default of 700 costs a
twentieth of a short call."""


def main() -> None:
    """Run the command line and end the process with its exit status."""
    gc.set_threshold(_COLLECT_EVERY)
    for name in ("stdout", "stderr"):  # closed by the caller (`>&-`): Python has None there
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for as long as the process lives
    for number in (signal.SIGTERM, signal.SIGHUP):  # leave every `with` block: guests are let go, folders removed
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda received, _: sys.exit(128 + received))
    sys.exit(run(sys.argv[1:]))


def run(words: list[str]) -> int:
    """Run the verb that `words` call for; returns the exit status, and raises only what is a bug of ours."""
    try:
        result = app_for(words)(words, prog_name="coldframe", standalone_mode=False)
    except ColdframeError as error:
        return _complain(str(error), error.exit_status)
    except typer.TyperException as error:  # 2 for wrong words, as typer says itself
        return _complain(f"{error.format_message()} (try --help)", error.exit_code)
    except BrokenPipeError:  # the reader of our output went away (`| head`): no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _complain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1)
    except typer.Abort:
        result = INTERRUPTED
    if result == INTERRUPTED:
        return _complain("interrupted", INTERRUPTED)
    return result if isinstance(result, int) else 0


def _complain(line: str, status: int) -> int:
    sys.stdout.flush()
    visible = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(line.split()))
    print(f"coldframe: {visible}", file=sys.stderr)
    return status
