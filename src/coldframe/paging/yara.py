"""YARA rules over an address space, through yara-x (https://virustotal.github.io/yara-x/), the extra `yara`.

A rule's condition is asked of one stretch of memory at a time: of each VAD in a process, so that `uint16(0) == 0x5a4d`
asks for the image's header; elsewhere, of pages that lie side by side.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from coldframe.errors import CapabilityError, FormatError, UsageError
from coldframe.paging.pieces import pieces
from coldframe.paging.search import Match, cut
from coldframe.paging.sources import ListsVads
from coldframe.paging.space import AddressSpace

LARGEST = 1 << 26
"""Bytes: the most that one stretch has; a larger VAD is several, and a match across two of them is not found."""
WIDEST_HOLE = 1 << 20
"""Bytes: pages of a VAD that cannot be read are zeros, unless there are more of them side by side."""
PATIENCE = 60
"""Seconds that the rules may take for one stretch."""
MOST_MATCHES = 10_000
"""Matches of one pattern in one stretch."""
LARGEST_FILE = 1 << 26


class RuleMatch(NamedTuple):
    """A rule that holds, and what one of its patterns matched; `pattern` is empty where the condition has none."""

    rule: str
    pattern: str
    match: Match


class Rules:
    """Compiled rules."""

    def __init__(self, source: str, origin: str = "") -> None:
        """Raises `UsageError` in one line for rules that do not compile, `CapabilityError` without yara-x."""
        try:
            import yara_x  # noqa: PLC0415 - an extra
        except ImportError:
            raise CapabilityError("YARA rules need yara-x: pip install 'coldframe[yara]'") from None
        compiler = yara_x.Compiler()
        compiler.enable_includes(False)
        try:
            compiler.add_source(source, origin=origin or None)
            self._scanner = yara_x.Scanner(compiler.build())
        except (yara_x.CompileError, ValueError) as error:
            raise UsageError(f"the YARA rules do not compile: {_one_line(str(error))}") from None
        self._scanner.set_timeout(PATIENCE)
        self._scanner.max_matches_per_pattern(MOST_MATCHES)
        self._trouble = (yara_x.ScanError, yara_x.TimeoutError)

    @classmethod
    def load(cls, path: Path) -> Rules:
        """The rules of a file; raises `UsageError` for one that is none."""
        try:
            with path.open("rb") as file:
                data = file.read(LARGEST_FILE + 1)
            if len(data) > LARGEST_FILE:
                raise UsageError(f"expected YARA rules of at most {LARGEST_FILE} bytes, found more in {path}")
            return cls(data.decode("utf-8"), str(path))
        except OSError as error:
            raise UsageError(f"cannot read the YARA rules {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UsageError(f"expected YARA rules as UTF-8 text, found other bytes in {path}") from None

    def search(self, space: AddressSpace, *, start: int | None = None, end: int | None = None) -> Iterator[RuleMatch]:
        """What the rules find from `start` to `end` (defaults as in `AddressSpace.pages`), stretch by stretch, in each
        by address."""
        for address, data in stretches(space, start, end):
            yield from sorted(self._scan(address, data), key=lambda found: found.match.address)

    def _scan(self, address: int, data: bytes) -> Iterator[RuleMatch]:
        try:
            results = self._scanner.scan(data)
        except self._trouble as error:
            raise FormatError(f"the YARA rules failed on {len(data)} bytes at {address:#x}: {error}") from None
        for rule in results.matching_rules:
            found = [(pattern.identifier, match) for pattern in rule.patterns for match in pattern.matches]
            for name, match in found:
                low = match.offset
                yield RuleMatch(rule.identifier, name, cut(address, data, low, low + match.length))
            if not found:
                yield RuleMatch(rule.identifier, "", cut(address, data, 0, 0))


def stretches(space: AddressSpace, start: int | None = None, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Address and bytes of each stretch that rules are asked of."""
    starts, ends = _vads(space)
    base, held, within = 0, bytearray(), -1
    for address, data in pieces(space, start, end):
        position = bisect_right(starts, address) - 1
        vad = position if position >= 0 and address < ends[position] else -1
        gap = address - (base + len(held))
        joins = gap == 0 if vad < 0 else gap <= WIDEST_HOLE
        if held and (vad != within or not joins or len(held) + gap + len(data) > LARGEST):
            yield base, bytes(held)
            held.clear()
        if not held:
            base, gap, within = address, 0, vad
        held += bytes(gap) + data
    if held:
        yield base, bytes(held)


def _vads(space: AddressSpace) -> tuple[Sequence[int], Sequence[int]]:
    """Where the VADs begin and end."""
    if not isinstance(space.vads, ListsVads):
        return (), ()
    ranges = sorted((vad.start, vad.end) for vad in space.vads.vad_ranges())
    return [low for low, _ in ranges], [high for _, high in ranges]


def _one_line(text: str) -> str:
    """A compiler's message, which draws the place on several lines, as one."""
    lines = [line.strip() for line in text.splitlines()]
    places = [line.removeprefix("-->").strip() for line in lines if line.startswith("-->")]
    marks = [line.rpartition("^")[2].strip() for line in lines if line.startswith("|") and "^" in line]
    return ": ".join(filter(None, [*lines[:1], *places[:1], *marks[:1]]))
