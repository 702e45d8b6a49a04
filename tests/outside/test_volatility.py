"""volatility3 on a dump of minint's RAM, with an ISF file that coldframe wrote, lists what coldframe lists."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TypeAlias

import pytest

from outside.dump import Frozen
from outside.readers import isf_folder, vol

pytestmark = [
    pytest.mark.minint,
    pytest.mark.skipif(
        importlib.util.find_spec("volatility3") is None, reason="volatility3 is not installed (extra `volatility`)"
    ),
]


ADDRESS = (1 << 48) - 1
"""volatility3 prints kernel addresses without their sign extension."""


Rows: TypeAlias = Callable[..., list[dict[str, object]]]


@pytest.fixture(scope="module")
def rows(frozen: Frozen) -> Rows:
    """`rows(plugin, words...)`: what a plugin of volatility3 prints of the dump."""
    isf = isf_folder(frozen.image.parent / "isf", frozen.symbols)

    def run(plugin: str, *words: str) -> list[dict[str, object]]:
        answer: list[dict[str, object]] = vol("-s", isf, "-f", str(frozen.image), plugin, *words)
        assert answer
        return answer

    return run


def test_the_processes(frozen: Frozen, rows: Rows) -> None:
    told = [(row["PID"], row["PPID"], row["ImageFileName"]) for row in rows("windows.pslist")]
    assert told == [(process.pid, process.ppid, process.name) for process in frozen.guest.processes]


def test_the_kernel_modules(frozen: Frozen, rows: Rows) -> None:
    told = [(row["Base"], row["Size"], row["Name"], row["Path"]) for row in rows("windows.modules")]
    assert told == [(module.base & ADDRESS, module.size, module.name, module.path) for module in frozen.guest.drivers]


def test_the_vads_of_every_process(frozen: Frozen, rows: Rows) -> None:
    told = {
        (row["PID"], row["Start VPN"], int(str(row["End VPN"])) + 1, row["Protection"], row["File"])
        for row in rows("windows.vadinfo")
    }
    seen = {
        (process.pid, vad.start, vad.end, vad.protection, vad.file)
        for process in frozen.guest.processes
        for vad in process.vads
    }
    assert told == seen


def test_the_user_modules(frozen: Frozen, rows: Rows) -> None:
    told = {(row["PID"], row["Base"], row["Size"], row["Name"]) for row in rows("windows.dlllist")}
    seen = {
        (process.pid, module.base, module.size, module.name)
        for process in frozen.guest.processes
        for module in process.modules
    }
    assert told <= seen  # where the loader's lists are not in RAM, coldframe names images by their VADs
    assert told


def test_what_the_dump_says_of_itself(frozen: Frozen, rows: Rows) -> None:
    told = {str(row["Variable"]): str(row["Value"]) for row in rows("windows.info")}
    assert int(told["Kernel Base"], 16) == frozen.guest.kernel.base & ADDRESS
    assert int(told["DTB"], 16) == frozen.guest.dtb
    assert told["Major/Minor"] == f"15.{frozen.guest.build}"


def test_dumps_are_of_the_machine_that_wrote_them(frozen: Frozen, rows: Rows) -> None:
    """volatility3's own scan of the pool finds the listed processes: nothing in the lists is coldframe's invention."""
    told = {row["PID"] for row in rows("windows.psscan")}
    assert told >= {process.pid for process in frozen.guest.processes}
