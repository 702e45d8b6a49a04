"""volatility3 on a dump of minint's RAM, with an ISF file that coldframe wrote, lists what coldframe lists."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import coldframe
from coldframe.minint import start
from coldframe.symbols import load_pdb, write_isf
from coldframe.windows import Guest

pytestmark = [
    pytest.mark.minint,
    pytest.mark.skipif(
        importlib.util.find_spec("volatility3") is None, reason="volatility3 is not installed (extra `volatility`)"
    ),
]


ADDRESS = (1 << 48) - 1
"""volatility3 prints kernel addresses without their sign extension."""


@dataclass(frozen=True)
class Dump:
    guest: Guest
    rows: Callable[..., list[dict[str, object]]]


@pytest.fixture(scope="module", params=["19041", "22000"])
def dump(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dump]:
    """A dump of a frozen minint, opened by coldframe, and volatility3's plugins on it."""
    folder = tmp_path_factory.mktemp("dump")
    image = folder / "minint.elf"
    with start(layout=request.param, vcpus=2) as machine:
        machine.write_dump(image)
        pdb = machine.symbols_folder / "ntkrnlmp.pdb"
        kernel = load_pdb(pdb)
        name = f"{kernel.identity.guid}-{kernel.identity.age}.json.xz"
        isf = folder / "isf" / "windows" / "ntkrnlmp.pdb" / name
        isf.parent.mkdir(parents=True)
        write_isf(kernel, isf)

        def rows(plugin: str, *words: str) -> list[dict[str, object]]:
            done = subprocess.run(
                [str(Path(sys.executable).parent / "vol"), "-q", "--offline", "-r", "json", "-s", str(folder / "isf"),
                 "-f", str(image), plugin, *words],
                capture_output=True, text=True, check=False, timeout=120,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-2000:]
            answer: list[dict[str, object]] = json.loads(done.stdout)
            assert answer, done.stderr[-2000:]
            return answer

        with coldframe.open(image, symbols=[machine.symbols_folder]) as guest:
            yield Dump(guest, rows)


def test_the_processes(dump: Dump) -> None:
    told = [(row["PID"], row["PPID"], row["ImageFileName"]) for row in dump.rows("windows.pslist")]
    assert told == [(process.pid, process.ppid, process.name) for process in dump.guest.processes]


def test_the_kernel_modules(dump: Dump) -> None:
    told = [(row["Base"], row["Size"], row["Name"], row["Path"]) for row in dump.rows("windows.modules")]
    assert told == [(module.base & ADDRESS, module.size, module.name, module.path) for module in dump.guest.drivers]


def test_the_vads_of_every_process(dump: Dump) -> None:
    told = {
        (row["PID"], row["Start VPN"], int(str(row["End VPN"])) + 1, row["Protection"], row["File"])
        for row in dump.rows("windows.vadinfo")
    }
    seen = {
        (process.pid, vad.start, vad.end, vad.protection, vad.file)
        for process in dump.guest.processes
        for vad in process.vads
    }
    assert told == seen


def test_the_user_modules(dump: Dump) -> None:
    told = {(row["PID"], row["Base"], row["Size"], row["Name"]) for row in dump.rows("windows.dlllist")}
    seen = {
        (process.pid, module.base, module.size, module.name)
        for process in dump.guest.processes
        for module in process.modules
    }
    assert told == seen


def test_what_the_dump_says_of_itself(dump: Dump) -> None:
    told = {str(row["Variable"]): str(row["Value"]) for row in dump.rows("windows.info")}
    assert int(told["Kernel Base"], 16) == dump.guest.kernel.base & ADDRESS
    assert int(told["DTB"], 16) == dump.guest.dtb
    assert told["Major/Minor"] == f"15.{dump.guest.build}"


def test_dumps_are_of_the_machine_that_wrote_them(dump: Dump, tmp_path: Path) -> None:
    """volatility3's own scan of the pool finds the listed processes: nothing in the lists is coldframe's invention."""
    told = {row["PID"] for row in dump.rows("windows.psscan")}
    assert told >= {process.pid for process in dump.guest.processes}
