"""volatility3's own 32-bit layers and lists on the built images: what they read of a page, coldframe reads likewise."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from coldframe.paging import State
from coldframe.paging.page import Via
from x86.conftest import MORE, Built, symbols_of
from x86.test_states import Scene

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("volatility3") is None, reason="volatility3 is not installed (extra `volatility`)"
)
PAGE = 4096


@pytest.fixture
def scene(one, tmp_path):
    made = Scene(one)
    (tmp_path / "ram").write_bytes(bytes(one.image.ram[0].data))
    return made


def layer(scene, dtb: int, folder: Path):
    """volatility3's layer of that address space."""
    from volatility3.framework import contexts
    from volatility3.framework.layers import intel, physical

    context = contexts.Context()
    context.config["file.location"] = (folder / "ram").as_uri()
    context.layers.add_layer(physical.FileLayer(context, "file", "file"))
    context.config["space.memory_layer"] = "file"
    context.config["space.page_map_offset"] = dtb
    kind = intel.WindowsIntelPAE if scene.built.image.format == "pae" else intel.WindowsIntel
    context.layers.add_layer(kind(context, "space", "space"))
    return context.layers["space"]


def test_pages_that_volatility_reads_are_read_likewise(scene, tmp_path):
    from volatility3.framework import exceptions

    space = layer(scene, scene.built.notepad.dtb, tmp_path)
    memory = scene.built.open().process(812).memory
    read = []
    for va, (state, via) in scene.states.items():
        if Via.TRANSITION_TABLE in via:
            continue  # there the protection's bit 7 is taken for a large page (volatility3, issue 518)
        try:
            theirs = space.read(va, PAGE)
        except exceptions.InvalidAddressException:
            continue
        if not via or state is State.VALID:
            assert theirs == memory.read(va, PAGE), hex(va)
            read.append(state)
    assert {State.VALID, State.TRANSITION} <= set(read)


def test_kernel_pages_are_the_same(scene, tmp_path):
    image = scene.built.image
    space = layer(scene, image.kernel_dtb, tmp_path)
    memory = scene.built.open().memory
    for va in (image.base, image.system.address & ~0xFFF, image.kpcrs[0], 0xFFDF0000):
        assert space.read(va, PAGE) == memory.read(va, PAGE), hex(va)


PLUGINS = ("windows.pslist", "windows.modules", "windows.dlllist")


@pytest.mark.parametrize("path", MORE or [pytest.param(None, marks=pytest.mark.skip("no whole 32-bit kernel types"))])
def test_its_lists_are_ours(path, folder, tmp_path):
    """With whole types, which the kernels of this tree are not: volatility3's plugins need more of them."""
    built = Built(symbols_of(path, folder)) if "_POOL_HEADER" in symbols_of(path, folder).types else None
    if built is None:
        pytest.skip("half its types are missing")
    (tmp_path / "ram").write_bytes(bytes(built.image.ram[0].data))
    guest = built.open()
    rows = {plugin: run(guest, path, tmp_path, plugin) for plugin in PLUGINS}
    assert [(r["PID"], r["PPID"], r["ImageFileName"], r["Offset(V)"]) for r in rows["windows.pslist"]] == [
        (p.pid, p.ppid, p.name, p.eprocess.address) for p in guest.processes
    ]
    assert [(r["Base"], r["Size"], r["Name"], r["Path"]) for r in rows["windows.modules"]] == [
        (m.base, m.size, m.name, m.path) for m in guest.drivers
    ]
    assert [(r["PID"], r["Base"], r["Size"], r["Name"]) for r in rows["windows.dlllist"]] == [
        (812, m.base, m.size, m.name) for m in guest.process(812).modules
    ]


def run(guest, isf, folder, plugin):
    """What a plugin of volatility3 prints, its layer given by hand (its scan for one wants a larger kernel)."""
    kind = "WindowsIntelPAE" if guest.location.format == "pae" else "WindowsIntel"
    options = {
        "class": "volatility3.framework.contexts.Module",
        "offset": guest.location.base,
        "layer_name.class": f"volatility3.framework.layers.intel.{kind}",
        "layer_name.page_map_offset": guest.dtb,
        "layer_name.kernel_virtual_offset": guest.location.base,
        "layer_name.memory_layer.class": "volatility3.framework.layers.physical.FileLayer",
        "layer_name.memory_layer.location": (folder / "ram").as_uri(),
        "layer_name.swap_layers": True,
        "layer_name.swap_layers.number_of_elements": 0,
        "symbol_table_name.class": "volatility3.framework.symbols.windows.WindowsKernelIntermedSymbols",
        "symbol_table_name.isf_url": Path(isf).resolve().as_uri(),
        "symbol_table_name.symbol_mask": 0,
    }
    config = folder / f"{plugin}.json"
    config.write_text(json.dumps({f"kernel.{option}": value for option, value in options.items()}))
    vol = Path(sys.executable).parent / "vol"
    words = [vol, "-q", "--offline", "-r", "json", "-f", folder / "ram", "-c", config, plugin]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-1000:]
    return json.loads(done.stdout)
