"""What a call of the command line loads: nothing that its verb does not need."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.main import get_command_name

from builder import kernel, kernel_files
from builder.windows import WindowsBuilder
from coldframe.cli.app import MODULES
from coldframe.images.write import write_elf

SAYS = """
import json, sys
from coldframe.cli.main import run
status = run(sys.argv[2:])
sys.stdout.flush()
open(sys.argv[1], "w").write(json.dumps([status, sorted(sys.modules)]))
"""


def loaded(folder: Path, *words: str) -> tuple[int, set[str]]:
    """Exit status and modules of a call."""
    answer = folder / "answer.json"
    subprocess.run([sys.executable, "-c", SAYS, str(answer), *words], check=True, capture_output=True, timeout=60)
    status, modules = json.loads(answer.read_text())
    return status, set(modules)


def test_help_loads_neither_numpy_nor_anything_that_looks_into_a_guest(tmp_path):
    for words in (("--help",), ("ps", "--help")):
        status, modules = loaded(tmp_path, *words)
        assert status == 0
        foreign = {"numpy", "pydantic", "rich", "cramjam", "libarchive", "asyncio", "http"}
        rooms = {"coldframe.windows", "coldframe.paging", "coldframe.images", "coldframe.symbols", "coldframe.qemu"}
        assert not modules & (foreign | rooms)
        assert len(modules) < 260


def test_a_call_loads_its_verbs_module_alone_and_every_module_has_the_verbs_it_is_said_to_have(tmp_path):
    assert not loaded(tmp_path, "ps", "--help")[1] & {f"coldframe.cli.{name}" for name in MODULES if name != "lists"}
    for name, verbs in MODULES.items():
        app = typer.Typer()
        import_module(f"coldframe.cli.{name}").register(app)
        assert tuple(get_command_name(each.callback.__name__) for each in app.registered_commands) == verbs


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """An image with processes and the vCPU's registers, and its symbols, as words."""
    if not (kernels := kernel_files()):
        pytest.skip("no kernel types: ../shared/symbols is absent")
    folder = tmp_path_factory.mktemp("startup")
    built = WindowsBuilder(kernel(kernels[0]))
    built.add_idt()
    process = built.add_process("notepad.exe", 812, 4)
    built.add_thread(process, 1204)
    built.finish()
    write_elf(folder / "memory.elf", built.physical(), [built.registers(process)])
    words = (str(folder / "memory.elf"), "--symbols", str(kernels[0]))
    assert loaded(folder, "ps", *words)[0] == 0  # the symbols are in the cache from now on
    return words


@pytest.mark.parametrize(
    "words", ["ps", "info", "modules", "threads", "vads --pid 812", "handles --pid 812", "pte PsLoadedModuleList"]
)
def test_what_is_told_without_arrays_loads_no_numpy(guest: tuple[str, ...], tmp_path: Path, words: str) -> None:
    verb, *more = words.split()
    status, modules = loaded(tmp_path, verb, guest[0], *more, *guest[1:], "--json")
    assert status == 0
    assert "coldframe.windows.guest" in modules
    rooms = {"coldframe.disk", "coldframe.paging.bulk", "coldframe.windows.sources", "coldframe.windows.store"}
    assert not modules & ({"numpy", "pydantic", "rich", "cramjam", "PIL", "asyncio", "http"} | rooms)
    assert len(modules) < 280


def test_an_image_is_opened_without_the_debugger_pictures_or_servers(tmp_path):
    image = tmp_path / "nothing.raw"
    image.write_bytes(bytes(1 << 20))
    status, modules = loaded(tmp_path, "ps", str(image), "--json")
    assert status == 1  # no kernel in it: everything that finds one was loaded
    assert "coldframe.windows" in modules
    foreign = {"rich", "asyncio", "http", "http.client", "urllib.request", "PIL", "hypothesis", "volatility3"}
    rooms = {"coldframe.debug", "coldframe.qemu", "coldframe.figures", "coldframe.minint", "coldframe.trace"}
    assert not modules & (foreign | rooms)
    assert len(modules) < 500
