"""Regular expressions that people write, over bytes that a guest wrote.

Python's matcher takes exponential time for some pairs of the two, and cannot be interrupted in it. So it runs in a
process of its own, `matcher`, that gets a time for each answer and a share of the memory, and is ended after that.
"""

from __future__ import annotations

import re
import select
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from coldframe.closing import Closing
from coldframe.errors import CapabilityError
from coldframe.paging import matcher

PATIENCE = 30.0
"""Seconds: how long the matcher may take to the next match, or to the end of a window."""

_PAIR = struct.Struct("<qq")


class Regular(Closing):
    """A regular expression as a pattern of `coldframe.paging.search.search`; a context manager."""

    def __init__(self, pattern: re.Pattern[bytes], *, patience: float = PATIENCE) -> None:
        self.pattern = pattern
        self.patience = patience
        self._matcher = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(matcher.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        source = pattern.pattern
        self._send(_PAIR.pack(len(source), pattern.flags), source)

    def close(self) -> None:
        """End the matcher; safe to call again."""
        self._matcher.kill()
        self._matcher.wait()
        for pipe in (self._matcher.stdin, self._matcher.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def find(self, data: bytes, start: int) -> Iterator[tuple[int, int]]:
        """Start and end of each match that begins at `start` or later.

        Raises `CapabilityError` where the next takes more than `patience` seconds or too much memory. An iterator
        that is not gone through to its end makes the pattern useless for other data.
        """
        self._send(_PAIR.pack(start, len(data)), data)
        held = b""
        while True:
            held += self._receive()
            whole = len(held) - len(held) % _PAIR.size
            for low, high in _PAIR.iter_unpack(held[:whole]):
                if low < 0:
                    return
                yield low, high
            held = held[whole:]

    def _send(self, *parts: bytes) -> None:
        pipe = self._matcher.stdin
        assert pipe is not None
        try:
            for part in parts:
                pipe.write(part)
            pipe.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _receive(self) -> bytes:
        pipe = self._matcher.stdout
        assert pipe is not None
        if not select.select([pipe], [], [], self.patience)[0]:
            self.close()
            raise CapabilityError(
                f"the expression took more than {self.patience:g} s for a stretch of memory:"
                " one with fewer repetitions that overlap is quicker"
            )
        data = pipe.read1(1 << 16)  # type: ignore[attr-defined]  # a BufferedReader
        if not data:
            raise self._ended()
        return bytes(data)

    def _ended(self) -> CapabilityError:
        self.close()
        return CapabilityError("the expression needs more memory than it may have: fewer repetitions need less")
