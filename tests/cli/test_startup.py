"""What a call of the command line loads: nothing that its verb does not need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
        foreign = {"numpy", "rich", "cramjam", "libarchive", "asyncio", "http"}
        if words == ("--help",):  # of a verb's words, typer lets pydantic check each
            foreign.add("pydantic")
        rooms = {"coldframe.windows", "coldframe.paging", "coldframe.images", "coldframe.symbols", "coldframe.qemu"}
        assert not modules & (foreign | rooms)
        assert len(modules) < 320


def test_an_image_is_opened_without_the_debugger_pictures_or_servers(tmp_path):
    image = tmp_path / "nothing.raw"
    image.write_bytes(bytes(1 << 20))
    status, modules = loaded(tmp_path, "ps", str(image), "--json")
    assert status == 1  # no kernel in it: everything that finds one was loaded
    assert "coldframe.windows" in modules
    foreign = {"rich", "asyncio", "http", "http.client", "urllib.request", "PIL", "hypothesis", "volatility3"}
    rooms = {"coldframe.debug", "coldframe.qemu", "coldframe.figures", "coldframe.minint", "coldframe.trace"}
    assert not modules & (foreign | rooms)
    assert len(modules) < 640
