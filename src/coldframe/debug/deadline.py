"""How long a wait may take: told in seconds, passed on to what waits within it as what is left of them."""

from __future__ import annotations

import math
import time

from coldframe.errors import UsageError

_LONGEST = 365 * 24 * 3600.0
"""Seconds that are as good as no limit, and that no clock of the system is too narrow for."""


class Deadline:
    """A moment `seconds` from now; with None, or more than a year, one that never comes.

    Raises `UsageError` for what is no length of time.
    """

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and (math.isnan(seconds) or seconds < 0):
            raise UsageError(f"expected a time limit of 0 or more seconds, found {seconds}")
        self._end = None if seconds is None or seconds > _LONGEST else time.monotonic() + seconds

    @property
    def left(self) -> float | None:
        """The seconds that are left, 0 once the moment has come; None where it never comes."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether the moment has come."""
        return self.left == 0
