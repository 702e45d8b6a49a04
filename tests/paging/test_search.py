"""A search finds in an address space what `re`, or yara-x, finds in its readable bytes laid side by side."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder import PAGE
from coldframe.errors import CapabilityError, UsageError
from coldframe.paging import Page, State
from coldframe.paging import search as searching
from coldframe.paging.pieces import pieces
from coldframe.paging.regular import Regular
from coldframe.paging.search import search
from paging.test_space import BASE, PAGES, Small

BYTES = [bytes([byte]) for byte in b"ab\x00\xff"]


class Disk:
    """Supplies every paged-out page: the bytes of its place, written out."""

    def read_page(self, page: Page) -> bytes | None:
        if page.state is not State.PAGEFILE or page.pagefile is None:
            return None
        return self.content(page.pagefile.offset // PAGE - 1)

    @staticmethod
    def content(index: int) -> bytes:
        return (b"page %d of the disk;" % index * PAGE)[:PAGE]


def space_of(layout: str, *, disk: bool = False) -> tuple[Small, list[tuple[int, bytes]]]:
    """The space, and its readable runs as built: promised zeros are none."""
    small = Small(layout)
    runs: list[tuple[int, bytes]] = []
    for index, (kind, content) in enumerate(zip(layout, small.truth, strict=True)):
        data = Disk.content(index) if kind == "p" and disk else content if kind in "vt" else None
        if data is None:
            continue
        if runs and runs[-1][0] + len(runs[-1][1]) == BASE + index * PAGE:
            runs[-1] = runs[-1][0], runs[-1][1] + data
        else:
            runs.append((BASE + index * PAGE, data))
    if disk:
        small.resolver.pages = Disk()
    return small, runs


def expected(pattern: re.Pattern[bytes], runs: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    return [
        (base + found.start(), found.group()) for base, data in runs for found in pattern.finditer(data) if found[0]
    ]


layouts = st.text("vtzp-", min_size=PAGES, max_size=PAGES)


@settings(max_examples=40, deadline=None)
@given(layouts, st.booleans(), st.lists(st.sampled_from(BYTES), min_size=1, max_size=3), st.booleans())
def test_what_re_finds_in_each_readable_run_is_found(layout, disk, parts, small_windows):
    small, runs = space_of(layout, disk=disk)
    pattern = re.compile(b".".join(map(re.escape, parts)), re.DOTALL)
    with pytest.MonkeyPatch.context() as patch:
        if small_windows:
            patch.setattr(searching, "WINDOW", 3000)
            patch.setattr(searching, "LONGEST", 100)
        found = [(match.address, match.data) for match in search(small.space, pattern)]
    assert found == expected(pattern, runs)


@settings(max_examples=20, deadline=None)
@given(layouts, st.booleans())
def test_pieces_are_the_readable_runs(layout, disk):
    small, runs = space_of(layout, disk=disk)
    joined: list[tuple[int, bytes]] = []
    for address, data in pieces(small.space):
        if joined and sum((joined[-1][0], len(joined[-1][1]))) == address:
            joined[-1] = joined[-1][0], joined[-1][1] + data
        else:
            joined.append((address, data))
    assert joined == runs


def test_a_match_across_a_border_of_pages_in_different_states_is_one():
    small, runs = space_of("vtpv--------", disk=True)
    data = runs[0][1]
    for border in (PAGE, 2 * PAGE, 3 * PAGE):
        wanted = data[border - 5 : border + 5]
        found = list(search(small.space, re.compile(re.escape(wanted), re.DOTALL)))
        assert BASE + border - 5 in [match.address for match in found]


def test_a_match_tells_what_is_around_it():
    small, runs = space_of("p-----------", disk=True)
    match = next(search(small.space, re.compile(b"of the")))
    at = match.address - BASE
    assert (match.size, match.data) == (6, b"of the")
    assert match.before == runs[0][1][max(at - 16, 0) : at]
    assert match.after == runs[0][1][at + 6 : at + 22]


def test_an_expression_of_a_user_finds_the_same_and_is_ended_when_it_takes_for_ever():
    small, runs = space_of("vtpvv-------", disk=True)
    pattern = re.compile(rb"[a-z]+;p|disk;page \d+|\x00+", re.DOTALL)
    with Regular(pattern) as finds:
        assert [(m.address, m.data) for m in search(small.space, finds)] == expected(pattern, runs)
    began = time.monotonic()
    with Regular(re.compile(rb"(a+)+b"), patience=0.5) as finds, pytest.raises(CapabilityError, match="took more than"):
        list(finds.find(b"a" * 64, 0))
    assert time.monotonic() - began < 20


def test_an_expression_that_wants_all_memory_ends_alone():
    with Regular(re.compile(rb"(?:(a)|b)*c"), patience=60) as finds, pytest.raises(CapabilityError, match="memory"):
        list(finds.find(b"a" * (1 << 25), 0))


def rules(source: str):
    pytest.importorskip("yara_x", reason="yara-x is not installed (extra `yara`)")
    from coldframe.paging.yara import Rules

    return Rules(source)


@settings(max_examples=15, deadline=None)
@given(layouts, st.booleans())
def test_yara_finds_what_it_finds_in_the_same_runs(layout, disk):
    small, runs = space_of(layout, disk=disk)
    compiled = rules(
        'rule one { strings: $a = { 00 01 ?? 03 } $b = "of the" $c = /disk;p+age/ condition: any of them }'
        "rule two { condition: uint8(0) == 0x70 }"
    )
    import yara_x

    plain = yara_x.compile(
        'rule one { strings: $a = { 00 01 ?? 03 } $b = "of the" $c = /disk;p+age/ condition: any of them }'
        "rule two { condition: uint8(0) == 0x70 }"
    )
    wanted = set()
    for base, data in runs:
        for rule in plain.scan(data).matching_rules:
            hits = [(p.identifier, m.offset, m.length) for p in rule.patterns for m in p.matches] or [("", 0, 0)]
            wanted |= {(rule.identifier, name, base + offset, size) for name, offset, size in hits}
    found = {(hit.rule, hit.pattern, hit.match.address, hit.match.size) for hit in compiled.search(small.space)}
    assert found == wanted


@pytest.mark.parametrize(
    "source",
    ["rule a { strings: $a = { zz } condition: $a }", "rule", 'include "/etc/passwd"', "rule a { condition: b }"],
)
def test_rules_that_do_not_compile_are_said_in_one_line(source):
    with pytest.raises(UsageError, match="do not compile") as caught:
        rules(source)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_rules_are_said(tmp_path):
    pytest.importorskip("yara_x", reason="yara-x is not installed (extra `yara`)")
    from coldframe.paging.yara import Rules

    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path, says in ((tmp_path / "binary", "UTF-8"), (tmp_path / "none", "cannot read"), (tmp_path, "cannot read")):
        with pytest.raises(UsageError, match=says):
            Rules.load(path)


def test_without_yara_x_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "yara_x", None)
    from coldframe.paging.yara import Rules

    with pytest.raises(CapabilityError, match=r"coldframe\[yara\]"):
        Rules("rule a { condition: true }")
