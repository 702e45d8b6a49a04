"""What the comparisons with other tools start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coldframe.minint import Truth
from coldframe.windows import Guest


@dataclass(frozen=True)
class Frozen:
    """A dump of a minint that stood still, its disk, its own account of itself, its PDBs, and coldframe's view."""

    image: Path
    disk: Path
    truth: Truth
    symbols: Path
    guest: Guest
