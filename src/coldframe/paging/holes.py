"""What of a span cannot be read."""

from __future__ import annotations

Holes = list[tuple[int, int]]
"""Address and size in bytes of each, by address; no two touch each other."""


def note_hole(holes: Holes, start: int, stop: int) -> None:
    """Add a hole to the list, or make the last one longer."""
    if holes and sum(holes[-1]) == start:
        holes[-1] = (holes[-1][0], stop - holes[-1][0])
    else:
        holes.append((start, stop - start))
