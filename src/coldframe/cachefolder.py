"""Where coldframe keeps what it made from a user's files: compiled symbols, unpacked images."""

from __future__ import annotations

import os
from pathlib import Path


def default_folder() -> Path | None:
    """`$XDG_CACHE_HOME/coldframe`, by default `~/.cache/coldframe`; None for a user without a home."""
    told = os.environ.get("XDG_CACHE_HOME")
    if told and Path(told).is_absolute():
        return Path(told) / "coldframe"
    try:
        return Path.home() / ".cache" / "coldframe"
    except RuntimeError:
        return None
