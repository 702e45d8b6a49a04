"""LiME, AVML, VMware, VirtualBox, 32-bit dumps and compressed images: built here byte by byte, read as memory."""

from __future__ import annotations

import gzip
import lzma
import os
import struct
import time

import cramjam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder import pattern
from coldframe.errors import ColdframeError, FormatError, UnreadableMemoryError
from coldframe.images import open_image, unpacked
from coldframe.images.write import write_elf

PAGE = 4096
LAYOUT = ((0, 3), (16, 20), (1 << 20, 1))  # (first page, pages), one above 4 GB
LOW = LAYOUT[:2]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "coldframe" / "images"


def pages(first: int, count: int) -> bytes:
    return b"".join(bytes(PAGE) if page % 5 == 4 else pattern(page) for page in range(first, first + count))


def lime(layout=LAYOUT) -> bytes:
    return b"".join(
        struct.pack("<4sIQQ8x", b"EMiL", 1, first * PAGE, (first + count) * PAGE - 1) + pages(first, count)
        for first, count in layout
    )


def avml(layout=LAYOUT) -> bytes:
    parts = []
    for first, count in layout:
        stream = bytes(cramjam.snappy.compress(pages(first, count)))
        head = struct.pack("<4sIQQ8x", b"AVML", 2, first * PAGE, (first + count) * PAGE - 1)
        parts += [head, stream, struct.pack("<Q", len(stream))]
    return b"".join(parts)


def elf32(notes=b"") -> bytes:
    head = struct.pack(
        "<4sBBB9xHHIIIIIHHHHHH", b"\x7fELF", 1, 1, 1, 4, 3, 1, 0, 52, 0, 0, 52, 32, 1 + len(LOW), 0, 0, 0
    )
    offset = 52 + 32 * (1 + len(LOW))
    head += struct.pack("<8I", 4, offset, 0, 0, len(notes), len(notes), 0, 0)
    offset += len(notes)
    for first, count in LOW:
        head += struct.pack("<8I", 1, offset, 0, first * PAGE, count * PAGE, count * PAGE, 7, 0)
        offset += count * PAGE
    return head + notes + b"".join(pages(*run) for run in LOW)


def pagedump() -> bytes:
    header = bytearray(b"PAGEDUMP".ljust(PAGE, b"\0"))
    struct.pack_into("<4I", header, 0x10, 0x39000, 0, 0x82970850, 0x82967CC8)
    struct.pack_into("<II", header, 0x20, 0x14C, 1)
    header[0x5C] = 1
    struct.pack_into("<II4I", header, 0x64, len(LOW), 23, *(number for run in LOW for number in run))
    struct.pack_into("<I", header, 0x320 + 0xB8, 0x82891234)
    struct.pack_into("<I", header, 0xF88, 1)
    return bytes(header) + b"".join(pages(*run) for run in LOW)


def virtualbox_notes() -> bytes:
    def note(name: bytes, kind: int, body: bytes) -> bytes:
        return struct.pack("<3I8s", len(name), len(body), kind, name) + body

    general = [100 + number for number in range(18)]
    selectors = b"".join(struct.pack("<QIIH6x", 1000 * n, 0xFFFF, 0, 8 * n) for n in range(6))
    state = struct.pack("<18Q", *general) + selectors + struct.pack("<4Q", 0x80050033, 2, 0x1AD000, 0x6F8)
    state += bytes(64) + struct.pack("<QI4xQI4x", 0x5000, 0x7F, 0x6000, 0xFFF) + bytes(48 + 24)
    state += struct.pack("<8Q", 0xD01, 0, 0, 0xFFFFF80312345678, 0, 0, 0x9000, 0)
    core = struct.pack("<6I", 0xC01AC0DE, 0x10006, 24, 0x07000000, 1, 1)
    return note(b"VBCORE\0", 0xB00, core) + note(b"VBCPU\0", 0xB01, state + bytes(8192)) * 2


REGIONS = ((0, 0, 3), (16, 3, 20), (1 << 20, 23, 1))  # first page, its page in the memory, pages


def tag(name: bytes, value: int, *indices: int, size: int = 4) -> bytes:
    head = struct.pack("<BB", len(indices) << 6 | size, len(name)) + name
    return head + struct.pack(f"<{len(indices)}I", *indices) + value.to_bytes(size, "little")


def block(name: bytes, data: bytes, *indices: int, padding: int = 0, flag: int = 63) -> bytes:
    head = struct.pack("<BB", len(indices) << 6 | flag, len(name)) + name + struct.pack(f"<{len(indices)}I", *indices)
    return head + struct.pack("<QQH", len(data), len(data), padding) + bytes(padding) + data


def vmss(regions=REGIONS, magic=b"\xd2\xbe\xd2\xbe", cpu=b"", more=b"") -> bytes:
    tags = block(b"Thumb", b"123456789") + tag(b"regionsCount", len(regions))
    for number, (ppn, page, size) in enumerate(regions):
        tags += tag(b"regionPageNum", page, number) + tag(b"regionPPN", ppn, number) + tag(b"regionSize", size, number)
    cpu += b"\0\0"
    groups = struct.pack("<64sQQ64sQQ", b"cpu", 172, len(cpu), b"memory", 172 + len(cpu), len(tags + more) + 2)
    return magic + struct.pack("<II", 0, 2) + groups + cpu + tags + more + b"\0\0"


def check(image, layout=LAYOUT):
    assert image.warnings in ((), [])
    assert image.physical.size == sum(count for _, count in layout) * PAGE
    for first, count in layout:
        assert image.physical.read(first * PAGE, count * PAGE) == pages(first, count)
    with pytest.raises(UnreadableMemoryError):
        image.physical.read(5 * PAGE, 1)


@pytest.mark.parametrize(
    ("data", "name", "layout"),
    [
        (lime(), "LiME", LAYOUT),
        (avml(), "AVML", LAYOUT),
        (elf32(), "ELF core (32 bits)", LOW),
        (elf32(virtualbox_notes()), "ELF core (VirtualBox)", LOW),
        (pagedump(), "32-bit crash dump (complete)", LOW),
        (gzip.compress(lime()), "LiME, gzip", LAYOUT),
        (lzma.compress(elf32()), "ELF core (32 bits), xz", LOW),
        (bytes(cramjam.zstd.compress(pagedump())), "32-bit crash dump (complete), zstd", LOW),
        (gzip.compress(avml()), "AVML, gzip", LAYOUT),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_each_format_gives_the_same_memory(tmp_path, data, name, layout):
    (tmp_path / "image").write_bytes(data)
    for _ in range(2):  # the second time from the cache, where there is one
        image = open_image(tmp_path / "image")
        assert image.format == name
        check(image, layout)


@pytest.mark.parametrize("suffix", [".vmss", ".vmsn"])
@pytest.mark.parametrize("magic", [b"\xd2\xbe\xd2\xbe", b"\xd1\xba\xd1\xba"])
def test_vmwares_state_says_where_its_memory_belongs(tmp_path, suffix, magic):
    (tmp_path / "guest.vmem").write_bytes(b"".join(pages(*run) for run in LAYOUT))
    (tmp_path / "guest").with_suffix(suffix).write_bytes(vmss(magic=magic))
    image = open_image(tmp_path / "guest.vmem")
    assert image.format == "VMware"
    check(image)
    check(open_image((tmp_path / "guest").with_suffix(suffix)))
    (tmp_path / "guest.vmem").unlink()
    with pytest.raises(FormatError, match=r"\.vmem"):
        open_image((tmp_path / "guest").with_suffix(suffix))


@pytest.mark.parametrize("padding", [0, 7, 0xFFF])
def test_vmwares_state_may_hold_the_memory_itself(tmp_path, padding):
    inside = block(b"Memory", b"".join(pages(*run) for run in LAYOUT), 0, 0, padding=padding)
    (tmp_path / "guest.vmsn").write_bytes(vmss(more=inside))
    image = open_image(tmp_path / "guest.vmsn")
    assert image.format == "VMware"
    check(image)
    inside = block(b"Memory", pages(0, 20), 0, 0, padding=padding)
    (tmp_path / "guest.vmsn").write_bytes(vmss((), more=inside))
    assert open_image(tmp_path / "guest.vmsn").physical.read(0, 20 * PAGE) == pages(0, 20)
    cut = vmss((), more=inside)[: -3 * PAGE]
    (tmp_path / "guest.vmsn").write_bytes(cut)
    image = open_image(tmp_path / "guest.vmsn")
    assert image.physical.size < 20 * PAGE
    assert any("cut off" in warning for warning in image.warnings)
    (tmp_path / "guest.vmsn").write_bytes(vmss((), more=block(b"Memory", b"x" * 99, flag=62)))
    with pytest.raises(FormatError, match="compressed"):
        open_image(tmp_path / "guest.vmsn")


def test_vmwares_state_carries_the_registers(tmp_path):
    """vCPU 0 in tags of their own, vCPU 1 in blocks, as versions of VMware differ."""
    names = ["rax", "rcx", "rdx", "rbx", "rbp", "rsp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16))]
    expected = {name: 0xFFFFF80300000000 + number for number, name in enumerate([*names, "rip"])}
    single = b"".join(tag(name.encode(), value, 0, size=8) for name, value in expected.items())
    control = {0: 0x80050033, 2: 0x1000, 3: 0x1AD000, 4: 0x6F8}
    single += b"".join(tag(b"CR64", value, 0, number, size=8) for number, value in control.items())
    single += tag(b"IDTR", 0x12345000, 0, 1) + tag(b"IDTR", 0xFFFFF803, 0, 2) + tag(b"eflags", 0x246, 0)
    blocks = block(b"gpregs", struct.pack("<16Q", *list(expected.values())[:16]), 1)
    blocks += block(b"CR64", struct.pack("<9Q", *(control.get(number, 0) for number in range(9))), 1)
    blocks += block(b"IDTR", struct.pack("<HQ", 0xFFF, 0xFFFFF80312345000), 1)
    blocks += tag(b"rip", expected["rip"], 1, size=8) + tag(b"EFLAGS", 0x246, 1)
    inside = block(b"Memory", b"".join(pages(*run) for run in LAYOUT), 0, 0)
    cpu = tag(b"cpu:numVCPUs", 2) + single + blocks
    (tmp_path / "guest.vmss").write_bytes(vmss(cpu=cpu, more=inside))
    first, second = open_image(tmp_path / "guest.vmss").registers
    expected |= {f"cr{number}": value for number, value in control.items()}
    expected |= {"idt_base": 0xFFFFF80312345000, "eflags": 0x246}
    assert first == expected
    assert second == expected | {"idt_limit": 0xFFF}


def test_vmware_without_regions_or_without_state_is_raw(tmp_path):
    (tmp_path / "guest.vmem").write_bytes(pages(0, 20))
    assert open_image(tmp_path / "guest.vmem").format == "raw"
    (tmp_path / "guest.vmss").write_bytes(vmss(()))
    assert open_image(tmp_path / "guest.vmem").physical.read(0, 20 * PAGE) == pages(0, 20)


def test_volatilitys_layers_read_lime_and_vmware_alike(tmp_path):
    pytest.importorskip("volatility3", reason="needs the extra `volatility`")
    from volatility3.framework import contexts
    from volatility3.framework.layers import lime as theirs
    from volatility3.framework.layers import physical, vmware

    (tmp_path / "x.lime").write_bytes(lime())
    (tmp_path / "x.vmem").write_bytes(b"".join(pages(*run) for run in LAYOUT))
    (tmp_path / "x.vmss").write_bytes(vmss())
    context = contexts.Context()
    for name in ("lime", "vmem", "vmss"):
        context.config[f"{name}.location"] = (tmp_path / f"x.{name}").as_uri()
        context.add_layer(physical.FileLayer(context, name, name))
    context.config["theirs.base_layer"] = "lime"
    context.add_layer(theirs.LimeLayer(context, "theirs", "theirs"))
    context.config["machine.base_layer"], context.config["machine.meta_layer"] = "vmem", "vmss"
    context.add_layer(vmware.VmwareLayer(context, "machine", "machine"))
    for name, file in (("theirs", "x.lime"), ("machine", "x.vmem")):
        image = open_image(tmp_path / file)
        for run in image.physical.runs:
            assert context.layers[name].read(run.start, run.size) == image.physical.read(run.start, run.size)


def test_virtualbox_notes_carry_the_registers(tmp_path):
    (tmp_path / "image").write_bytes(elf32(virtualbox_notes()))
    first, second = open_image(tmp_path / "image").registers
    assert first == second
    expected = {"rax": 100, "rip": 114, "rsp": 115, "eflags": 117, "cs": 0, "gs": 32, "gs_base": 4000, "ss": 40}
    expected |= {"cr0": 0x80050033, "cr3": 0x1AD000, "cr4": 0x6F8, "idt_base": 0x6000, "idt_limit": 0xFFF}
    expected |= {"efer": 0xD01, "lstar": 0xFFFFF80312345678, "k_gs_base": 0x9000}
    assert {name: first[name] for name in expected} == expected


def test_a_32_bit_crash_dumps_header_tells_the_way_to_the_kernel(tmp_path):
    (tmp_path / "image").write_bytes(pagedump())
    (registers,) = open_image(tmp_path / "image").registers
    assert (registers["cr3"], registers["nt_address"], registers["pae"]) == (0x39000, 0x82970850, 1)
    assert registers["rip"] == 0x82891234


def test_a_changed_file_is_unpacked_anew_and_the_oldest_go_first(tmp_path, cache, monkeypatch):
    path = tmp_path / "image.gz"
    path.write_bytes(gzip.compress(lime()))
    check(open_image(path))
    assert len(list(cache.iterdir())) == 1
    path.write_bytes(gzip.compress(lime(LOW)))
    os.utime(path, (1, 1))
    check(open_image(path), LOW)
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr(unpacked, "_MOST_KEPT", 0)
    path.write_bytes(gzip.compress(lime()))
    os.utime(path, (2, 2))
    check(open_image(path))
    (kept,) = cache.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_unpacking_stops_at_its_bounds(tmp_path, cache, monkeypatch):
    (tmp_path / "image").write_bytes(gzip.compress(lime()))
    monkeypatch.setattr(unpacked, "_SPARE", 1 << 60)
    with pytest.raises(ColdframeError, match="no room"):
        open_image(tmp_path / "image")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
    monkeypatch.setattr(unpacked, "_MOST_UNPACKED", 5 * PAGE)
    with pytest.raises(FormatError, match="unpacks to more than"):
        open_image(tmp_path / "image")
    assert list(cache.iterdir()) == []


def test_opening_a_large_sparse_image_reads_a_few_pages(tmp_path):
    """64 GB each: a hole in the file is not looked at, so opening takes no longer than of a small one."""
    raw, core, dump = tmp_path / "x.raw", tmp_path / "x.elf", tmp_path / "x.dmp"
    with raw.open("wb") as file:
        file.truncate(64 << 30)
    image = open_image(raw)
    write_elf(core, type(image.physical)([]))
    head = bytearray(core.read_bytes())
    head[:] = struct.pack(
        "<4sBBB9xHHIQQQIHHHHHHII6Q",
        *(b"\x7fELF", 2, 1, 1, 4, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0, 1, 0, PAGE, 0, 0, (64 << 30) - PAGE, 0, 0),
    )
    header = bytearray(b"PAGEDU64".ljust(0x2000, b"\0"))
    struct.pack_into("<I", header, 0x30, 0x8664)
    struct.pack_into("<IIQQQ", header, 0x88, 1, 0, 16 << 20, 0, (16 << 20) - 2)
    struct.pack_into("<I", header, 0xF98, 1)
    for path, start in ((core, head), (dump, header)):
        with path.open("wb") as file:
            file.write(start)
            file.truncate(64 << 30)
    for path in (raw, core, dump):
        open_image(path)
        started, before = time.process_time(), faults()
        opened = open_image(path)
        assert opened.physical.size > 63 << 30
        assert faults() - before < 200
        assert time.process_time() - started < 0.1


def faults() -> int:
    """Pages that this process has touched for the first time; a mapping's pages among them."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"EMiL" + struct.pack("<IQQ8x", 7, 0, PAGE), "version 7"),
        (b"EMiL" + struct.pack("<IQQ8x", 1, PAGE, 0), "LiME header"),
        (b"AVML" + struct.pack("<IQQ8x", 3, 0, PAGE), "version 3"),
        (avml()[:-9], "Snappy"),
        (avml()[:60], "Snappy"),
        (avml().replace(b"sNaPpY", b"sNaPpX") + b"x", "AVML header"),
        (b"AVML" + struct.pack("<IQQ8x", 2, 0, PAGE) + bytes(5000), "too small"),
        (gzip.compress(lime())[:-40], "damaged|cut off"),
        (lzma.compress(lime())[:-40], "damaged"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "damaged"),
        (gzip.compress(b""), "damaged|empty"),
        (pagedump().replace(b"\x4c\x01", b"\x4d\x01", 1), "0x14d"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_damaged_gets_one_line(tmp_path, data, says):
    (tmp_path / "image").write_bytes(data)
    with pytest.raises(ColdframeError, match=says) as caught:
        open_image(tmp_path / "image")
    assert "\n" not in str(caught.value)


INSIDE = vmss(
    cpu=tag(b"rip", 1, 0) + block(b"gpregs", bytes(128), 0) + tag(b"CR64", 1, 0, 3),
    more=block(b"Memory", b"".join(pages(*run) for run in LOW), 0, 0),
)
SEEDS = [lime(LOW), avml(LOW), elf32(virtualbox_notes()), pagedump(), gzip.compress(lime(LOW)), INSIDE, vmss()]


@settings(max_examples=200, deadline=None)
@given(
    which=st.sampled_from(SEEDS),
    damage=st.lists(st.tuples(st.integers(0, 0x1400), st.binary(min_size=1, max_size=8)), max_size=6),
    extremes=st.lists(st.tuples(st.integers(1, 0x80), st.sampled_from([0, 0xFF, 0x7F])), max_size=12),
    cut=st.integers(0, 0x5000) | st.none(),
)
def test_any_damage_ends_in_memory_or_in_one_line(tmp_path_factory, which, damage, extremes, cut):
    data = bytearray(which)
    for offset, junk in damage:
        data[offset : offset + len(junk)] = junk
    for offset, byte in extremes:
        data[4 * offset : 4 * offset + 4] = bytes([byte]) * 4
    path = tmp_path_factory.getbasetemp() / "damaged.vmem"
    path.write_bytes(bytes(pages(0, 20) if which == SEEDS[-1] else data[:cut]))
    path.with_suffix(".vmss").write_bytes(bytes(data[:cut]))
    try:
        image = open_image(path)
    except ColdframeError as error:
        assert "\n" not in str(error)
        return
    for run in image.physical.runs:
        assert len(image.physical.read(run.start, min(run.size, PAGE))) == min(run.size, PAGE)
