"""Imported by volatility3 from the folder named in its option `-p`: makes coldframe's layers known to it."""

from __future__ import annotations

from coldframe.volatility import layers  # noqa: F401 - volatility3 finds its classes as subclasses of its own
