"""The same pages read by several tools: coldframe, volatility3 with its own layer and with coldframe's, MemProcFS.

Each tool but coldframe runs in a process of its own and is asked for pages by process and address; an answer is the
SHA-256 of the 4096 bytes it read, or an empty string where it says that it cannot read them.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TypeAlias

import coldframe
from coldframe.errors import UnreadableMemoryError
from coldframe.minint import TruthPage
from coldframe.symbols import load_pdb, write_isf
from coldframe.volatility import PLUGINS

Key: TypeAlias = tuple[int, int]
"""Process identifier and address."""
Answers: TypeAlias = dict[Key, str]
Row: TypeAlias = dict[str, object]

PAGE = 4096
ADDRESS = (1 << 48) - 1
ZEROS = hashlib.sha256(bytes(PAGE)).hexdigest()

READ_PAGES = '''
import bisect, hashlib, json
from volatility3.framework import exceptions, interfaces, renderers
from volatility3.framework.configuration import requirements
from volatility3.plugins.windows import pslist

PAGE, END = 4096, 1 << 48

class ReadPages(interfaces.plugins.PluginInterface):
    """SHA-256 of pages: read each for itself, and found in the list of all that the layer maps."""

    _required_framework_version = (2, 0, 0)

    @classmethod
    def get_requirements(cls):
        return [
            requirements.ModuleRequirement(name="kernel", description="kernel", architectures=["Intel64"]),
            requirements.StringRequirement(name="pages", description="JSON file: pid to addresses"),
        ]

    def rows(self):
        wanted = json.load(open(self.config["pages"]))
        for process in pslist.PsList.list_processes(self.context, self.config["kernel"]):
            addresses = wanted.get(str(int(process.UniqueProcessId)), [])
            layer = self.context.layers[process.add_process_layer()]
            pieces = [(offset, size) for offset, size, *_ in layer.mapping(0, END, ignore_errors=True)]
            starts = [start for start, _ in pieces]
            for address in addresses:
                start, size = pieces[max(bisect.bisect_right(starts, address) - 1, 0)]
                listed = start <= address < start + size
                try:
                    own = hashlib.sha256(layer.read(address, PAGE)).hexdigest()
                except exceptions.InvalidAddressException:
                    own = ""
                yield 0, (int(process.UniqueProcessId), str(address), own, listed)

    def run(self):
        return renderers.TreeGrid([("PID", int), ("Address", str), ("Read", str), ("Listed", bool)], self.rows())
'''

READ_MEMPROCFS = """
import hashlib, sys, memprocfs
vmm = memprocfs.Vmm(["-device", sys.argv[1], "-disable-python", "-disable-symbolserver"])
for line in sys.stdin:
    pid, address = line.split()
    try:
        data = vmm.process(int(pid)).memory.read(int(address, 16), 4096)
        print("read", hashlib.sha256(data).hexdigest() if len(data) == 4096 else "")
    except Exception:
        print("read", "")
"""


def vol(*words: str) -> list[Row]:
    """What volatility3 prints.

    It gets a cache of its own: of one that several share it may not know the symbols, and then deletes their file to
    make room for a download.
    """
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [str(Path(sys.executable).parent / "vol"), "-q", "--offline", "--cache-path", cache, "-r", "json", *words],
            capture_output=True, text=True, check=False, timeout=200,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows: list[Row] = json.loads(done.stdout)
    return rows


def isf_folder(folder: Path, symbols: Path) -> str:
    """A folder of symbols as volatility3 wants it, with minint's kernel."""
    kernel = load_pdb(symbols / "ntkrnlmp.pdb")
    path = folder / "windows" / "ntkrnlmp.pdb" / f"{kernel.identity.guid}-{kernel.identity.age}.json.xz"
    path.parent.mkdir(parents=True)
    write_isf(kernel, path)
    return str(folder)


def by_volatility(folder: Path, image: Path, isf: str, keys: Iterable[Key], *, ours: bool) -> dict[Key, Row]:
    """What volatility3 reads of pages, through coldframe's layer or through its own; `folder` is for its plugin.

    A row has `Read`, the SHA-256, and `Listed`, whether the layer lists the page as mapped.
    """
    plugin = folder / "plugins" / "windows" / "readpages.py"
    plugin.parent.mkdir(parents=True, exist_ok=True)
    plugin.write_text(READ_PAGES)
    wanted: dict[int, list[int]] = {}
    for pid, address in keys:
        wanted.setdefault(pid, []).append(address)
    listed = folder / "pages.json"
    listed.write_text(json.dumps(wanted))
    folders = f"{folder / 'plugins'};{PLUGINS}" if ours else str(folder / "plugins")
    rows = vol("-p", folders, "-s", isf, "-f", str(image), "windows.readpages.ReadPages", "--pages", str(listed))
    return {(int(str(row["PID"])), int(str(row["Address"]))): row for row in rows}


def by_memprocfs(image: Path, keys: Collection[Key]) -> Answers:
    """What MemProcFS reads."""
    asked = "".join(f"{pid} {address:#x}\n" for pid, address in keys)
    command = [sys.executable, "-c", READ_MEMPROCFS, str(image)]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False, timeout=200)
    answers = [line.partition(" ")[2] for line in done.stdout.splitlines() if line.startswith("read")]
    assert len(answers) == len(keys), done.stderr[-2000:]
    return dict(zip(keys, answers, strict=True))


def by_coldframe(image: Path, symbols: Path, keys: Iterable[Key], disk: Path | None = None) -> Answers:
    """What coldframe reads, from RAM alone or with the guest's disk."""
    answers: Answers = {}
    with coldframe.open(image, symbols=[symbols], disk=disk or (), no_disk=disk is None) as guest:
        spaces = {process.pid: process.memory for process in guest.processes}
        for pid, address in keys:
            full = address if address < 1 << 47 else address | ~ADDRESS & (1 << 64) - 1
            try:
                answers[pid, address] = hashlib.sha256(spaces[pid].read(full, PAGE)).hexdigest()
            except UnreadableMemoryError:
                answers[pid, address] = ""
    return answers


def pages_with_content(pages: Iterable[TruthPage]) -> dict[Key, TruthPage]:
    """The pages whose content the guest told, by process and address."""
    return {(page.pid, page.address & ADDRESS): page for page in pages if page.sha256}
