"""volatility3 reads the same built guests, with its own layer and its own walks, and lists the same."""

from __future__ import annotations

import pytest

from coldframe.windows import Guest
from windows.conftest import KERNELS, Built

pytest.importorskip("volatility3", reason="needs the extra `volatility`")


@pytest.fixture(params=KERNELS[::3] or [None], ids=lambda path: path.name[:8] if path else "none")
def both(request, tmp_path):
    """The guest as coldframe opens it, and volatility3's context on the same bytes; some kernels, to be quick."""
    kernel_path = request.param
    if kernel_path is None:
        pytest.skip("no kernel types: ../shared/symbols is absent")
    from volatility3.framework import contexts
    from volatility3.framework.layers import intel, physical
    from volatility3.framework.symbols.windows import WindowsKernelIntermedSymbols

    built = Built(kernel_path)
    image, notepad = built.image, built.notepad
    image.add_driver("ntoskrnl.exe", image.base, image.size)
    image.add_driver("Ntfs.sys", image.base + 0x2000_0000, 0x5000)
    image.add_private_vad(notepad, 0x1000_0000, 16)
    image.add_view(notepad, 0x2000_0000, file="\\Users\\minint\\a.txt", counts=(5,))
    image.add_view(notepad, 0x7FB_1234_0000, file="\\Windows\\ntdll.dll", counts=(1, 6, 3), image=True, protection=7)
    file = image.add_file("\\Users\\minint\\a.txt")
    image.set_handles(notepad, {4: (file, 0x12019F), 0x6C: (built.smss.address, 0x1FFFFF)})
    guest: Guest = built.open()

    raw = tmp_path / "raw"
    raw.write_bytes(image.ram[0].data)
    context = contexts.Context()
    context.config["base.location"] = raw.as_uri()
    context.add_layer(physical.FileLayer(context, "base", "base"))
    context.config["kernel.memory_layer"] = "base"
    context.config["kernel.page_map_offset"] = image.kernel_dtb
    context.add_layer(intel.WindowsIntel32e(context, "kernel", "layer"))
    table = WindowsKernelIntermedSymbols(context, "types", "nt", isf_url=kernel_path.resolve().as_uri())
    context.symbol_space.append(table)
    contexts.Module.create(context, "kernel", "layer", offset=image.base, symbol_table_name="nt")
    return guest, context


def canonical(address: int) -> int:
    return address | 0xFFFF_0000_0000_0000 if address >> 47 & 1 else address


def test_both_list_the_same(both):
    from volatility3.plugins.windows import handles, modules, pslist

    guest, context = both
    theirs = list(pslist.PsList.list_processes(context, "kernel"))
    processes = [(int(p.UniqueProcessId), int(p.InheritedFromUniqueProcessId), canonical(p.vol.offset)) for p in theirs]
    assert processes == [(p.pid, p.ppid, p.eprocess.address) for p in guest.processes]
    assert [p.get_create_time() for p in theirs] == [p.created.replace(microsecond=0) for p in guest.processes]

    threads = [t for p in theirs for t in p.ThreadListHead.to_list("nt!_ETHREAD", "ThreadListEntry")]
    assert [int(t.Cid.UniqueThread) for t in threads] == [t.tid for p in guest.processes for t in p.threads]

    vads = [sorted(p.get_vad_root().traverse(), key=lambda vad: vad.get_start()) for p in theirs]
    assert [
        (v.get_start(), v.get_end() + 1, v.get_file_name() if v.get_tag() == "Vad " else None)
        for listed in vads
        for v in listed
    ] == [(v.start, v.end, v.file) for p in guest.processes for v in p.vads]
    assert [bool(v.get_private_memory()) for listed in vads for v in listed] == [
        v.private for p in guest.processes for v in p.vads
    ]

    drivers = modules.Modules.list_modules(context, "kernel")
    assert [(m.BaseDllName.get_string(), canonical(m.DllBase)) for m in drivers] == [
        (m.name, m.base) for m in guest.drivers
    ]

    notepad = next(p for p in theirs if int(p.UniqueProcessId) == 812)
    assert [
        (int(entry.HandleValue), canonical(entry.Body.vol.offset), int(entry.GrantedAccess))
        for entry in handles.Handles.handles(context, "kernel", notepad.ObjectTable)
    ] == [(h.value, h.object.address, h.access) for h in guest.process(812).handles]
