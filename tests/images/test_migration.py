"""QEMU's migration streams: of a real QEMU, held against its own pmemsave, and made by hand."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder import pattern
from coldframe.errors import FormatError, UnreadableMemoryError
from coldframe.images import open_image

QEMU = shutil.which("qemu-system-x86_64")
PAGE, GB = 4096, 1 << 30
Execute = Callable[..., object]


@contextlib.contextmanager
def machine(*words: str) -> Iterator[Execute]:
    """A stopped QEMU whose firmware has run for a moment; yields its monitor."""
    assert QEMU is not None
    process = subprocess.Popen(
        [QEMU, "-display", "none", "-accel", "tcg", "-net", "none", "-qmp", "stdio", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def execute(command: str, **arguments: object) -> object:
        process.stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            answer = json.loads(line)
            if "return" in answer or "error" in answer:
                return answer["return"]
        raise AssertionError("QEMU ended")

    try:
        process.stdout.readline()
        execute("qmp_capabilities")
        time.sleep(0.3)
        yield execute
    finally:
        process.kill()
        process.wait()


def migrate(execute: Execute, path: Path) -> None:
    execute("stop")
    execute("migrate", uri=f"exec:cat > {path}")
    deadline = time.monotonic() + 60
    while (status := execute("query-migrate")["status"]) != "completed":  # type: ignore[index]
        assert status != "failed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")
@pytest.mark.parametrize("kind", ["pc", "q35"])
def test_every_page_and_register_is_as_qemu_itself_tells_it(tmp_path, kind):
    with machine("-M", kind, "-m", "48M", "-smp", "2") as execute:
        migrate(execute, tmp_path / "stream")
        execute("pmemsave", val=0, size=48 << 20, filename=str(tmp_path / "raw"))
        said = str(execute("human-monitor-command", **{"command-line": "info registers -a"}))
    image = open_image(tmp_path / "stream")
    assert (image.format, list(image.warnings)) == ("QEMU migration stream", [])
    assert [(run.start, run.size) for run in image.physical.runs] == [(0, 48 << 20)]
    memory = (tmp_path / "raw").read_bytes()
    for start in [*range(0, 0xA0000, PAGE), *range(1 << 20, 48 << 20, PAGE)]:  # between them is no plain RAM
        assert image.physical.read(start, PAGE) == memory[start : start + PAGE], hex(start)
    assert len(image.registers) == 2
    for vcpu, text in enumerate(said.split("CPU#")[1:]):
        found = image.registers[vcpu]
        for name in ("RAX", "RSP", "R15", "RIP", "CR0", "CR3", "CR4", "EFER"):
            told = re.search(rf"\b(?:{name}|E{name[1:]}) ?=([0-9a-f]+)", text)
            if told is not None:
                assert found[name.lower()] == int(told[1], 16), name
        ((base, limit),) = re.findall(r"IDT=\s+([0-9a-f]+) ([0-9a-f]+)", text)
        assert (found["idt_base"], found["idt_limit"]) == (int(base, 16), int(limit, 16))


@pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")
@pytest.mark.parametrize(("kind", "size", "low"), [("q35", "2816M", 2 * GB), ("pc", "3584M", 3 * GB)])
def test_ram_above_4_gb_lies_where_the_machine_has_it(tmp_path, kind, size, low):
    """The generic loader puts a number at guest-physical addresses, as the machine has them."""
    places = {low - 8: 0x1122334455667788, 4 * GB + 0x5000: 0x99AABBCCDDEEFF00}
    words = [f"loader,addr={address:#x},data={value:#x},data-len=8" for address, value in places.items()]
    loaders = [word for loader in words for word in ("-device", loader)]
    with machine("-M", kind, "-m", size, "-S", *loaders) as execute:
        migrate(execute, tmp_path / "stream")
    image = open_image(tmp_path / "stream")
    assert {address: image.physical.u64(address) for address in places} == places
    assert image.physical.size == int(size[:-1]) << 20
    with pytest.raises(UnreadableMemoryError):
        image.physical.read(low, 1)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("cache")
@pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")
@pytest.mark.parametrize("options", ["cluster_size=64k", "cluster_size=4k", "compat=0.10"])
def test_the_memory_of_an_internal_snapshot_is_read_from_the_disk(tmp_path, options):
    disk = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(disk), "80M"], check=True)
    with pytest.raises(FormatError, match="no snapshot with the state"):
        open_image(disk)
    with machine("-m", "32M", "-drive", f"if=none,id=d,file={disk}") as execute:
        execute("stop")
        for name in ("first", "second"):
            assert not execute("human-monitor-command", **{"command-line": f"savevm {name}"})
        execute("pmemsave", val=0, size=32 << 20, filename=str(tmp_path / "raw"))
    image = open_image(disk)
    assert image.format == "QEMU snapshot (qcow2)"
    (warning,) = image.warnings
    assert "'second' is taken, not 'first'" in warning
    memory = (tmp_path / "raw").read_bytes()
    for start in [*range(0, 0xA0000, PAGE), *range(1 << 20, 32 << 20, PAGE)]:
        assert image.physical.read(start, PAGE) == memory[start : start + PAGE], hex(start)
    assert image.registers[0]["cr0"]
    data = bytearray(disk.read_bytes())
    for number in range(60):
        damaged = bytearray(data)
        damaged[number * 4 + 4 : number * 4 + 8] = (b"\xff" * 4, b"\0" * 4, b"\x7f" * 4)[number % 3]
        (tmp_path / "damaged").write_bytes(damaged[: len(data) // (1 + number % 2)])
        with contextlib.suppress(FormatError):
            open_image(tmp_path / "damaged")


# By hand


def text(name: str) -> bytes:
    return bytes([len(name)]) + name.encode()


def page(address: int, data: bytes | int, name: str = "") -> bytes:
    """A page's record: its bytes, or the byte that it is full of; with a name where the block changes."""
    flags = (0x02 if isinstance(data, int) else 0x08) | (0 if name else 0x20)
    return struct.pack(">Q", address | flags) + (text(name) if name else b"") + (
        bytes([data]) if isinstance(data, int) else data
    )  # fmt: skip


def stream(
    records: Sequence[bytes],
    *,
    blocks: Sequence[tuple[str, int]] = (("pc.ram", 64 * PAGE), ("pc.bios", 4 * PAGE)),
    capabilities: Sequence[str] = (),
    machine_type: str = "pc-q35-7.2",
) -> bytes:
    sizes = struct.pack(">Q", sum(size for _, size in blocks) | 0x04)
    for name, size in blocks:
        sizes += text(name) + struct.pack(">Q", size) + bytes(8) * ("x-ignore-shared" in capabilities)
    end, footer = struct.pack(">Q", 0x10), struct.pack(">BI", 0x7E, 2)
    configuration = b"\x07" + struct.pack(">I", len(machine_type)) + machine_type.encode()
    if capabilities:
        listed = struct.pack(">I", len(capabilities)) + b"".join(map(text, capabilities))
        configuration += b"\x05" + text("configuration/capabilities") + struct.pack(">I", 1) + listed
    start = b"\x01" + struct.pack(">I", 2) + text("ram") + struct.pack(">II", 0, 4) + sizes + end + footer
    part = b"\x02" + struct.pack(">I", 2) + b"".join(records) + end + footer
    last = b"\x03" + struct.pack(">I", 2) + end + footer
    return b"QEVM" + struct.pack(">I", 3) + configuration + start + part + last + b"\0"


def whole() -> list[bytes]:
    """Each page of both blocks: with bytes, or zeros."""
    ram = [page(n * PAGE, pattern(n) if n % 7 else 0, "pc.ram" if n == 0 else "") for n in range(64)]
    return ram + [page(n * PAGE, 0xFF, "pc.bios" if n == 0 else "") for n in range(4)]


def opened(tmp_path: Path, data: bytes):
    (tmp_path / "stream").write_bytes(data)
    return open_image(tmp_path / "stream")


def test_pages_zeros_and_what_was_sent_again(tmp_path):
    again = [page(3 * PAGE, pattern(99), "pc.ram"), page(5 * PAGE, 0), page(7 * PAGE, pattern(98))]
    image = opened(tmp_path, stream([*whole(), *again]))
    expected = [pattern(n) if n % 7 else bytes(PAGE) for n in range(64)]
    expected[3], expected[5], expected[7] = pattern(99), bytes(PAGE), pattern(98)
    assert image.physical.read(0, 64 * PAGE) == b"".join(expected)
    assert image.physical.read(3 * PAGE - 5, 10) == expected[2][-5:] + expected[3][:5]
    assert "registers" in image.warnings[0]


def test_what_virsh_save_puts_before_it_is_passed_over(tmp_path):
    xml = b"<domain/>".ljust(200, b"\0")
    head = b"LibvirtQemudSave" + struct.pack("<5I", 2, len(xml), 1, 0, 0) + bytes(56)
    assert opened(tmp_path, head + xml + stream(whole())).physical.read(PAGE, PAGE) == pattern(1)
    with pytest.raises(FormatError, match="save it as raw"):
        opened(tmp_path, b"LibvirtQemudSave" + struct.pack("<5I", 2, 0, 1, 3, 0) + bytes(56))


def test_pages_that_were_not_sent_are_named(tmp_path):
    image = opened(tmp_path, stream(whole()[:10]))
    assert "54 pages of 'pc.ram' are not in the stream" in image.warnings[0]
    with pytest.raises(UnreadableMemoryError, match="does not carry this page") as caught:
        image.physical.read(9 * PAGE, 2 * PAGE)
    assert caught.value.address == 10 * PAGE


def test_a_stream_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path):
    data = stream(whole())
    image = opened(tmp_path, data[: data.index(pattern(40)) + 100])
    assert image.physical.read(39 * PAGE, PAGE) == pattern(39)
    with pytest.raises(UnreadableMemoryError):
        image.physical.read(40 * PAGE, 1)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"QEVM" + struct.pack(">I", 2), "version 3"),
        (b"QEVM", "header"),
        (stream([], capabilities=["x-ignore-shared"]), "shared RAM was left out"),
        (stream([]), "multifd"),
        (stream([], capabilities=["mapped-ram"]), "mapped-ram"),
        (stream(whole()).replace(b"\x03ram", b"\x03rom"), "'rom'"),
        (stream([], blocks=[("pc.ram", 1 << 50)]), "RAM block"),
        (stream([], blocks=[("vga.vram", PAGE)]), "without the guest's RAM"),
    ],
)
def test_what_cannot_be_read_gets_one_line(tmp_path, data, says):
    with pytest.raises(FormatError, match=says) as caught:
        opened(tmp_path, data)
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(
    damage=st.lists(st.tuples(st.integers(8, 0x400), st.binary(min_size=1, max_size=8)), max_size=6),
    later=st.lists(st.tuples(st.integers(0, 64), st.binary(min_size=1, max_size=12)), max_size=4),
    cut=st.integers(0, 0x4000) | st.none(),
)
def test_any_damage_ends_in_memory_or_in_one_line(tmp_path_factory, damage, later, cut):
    data = bytearray(stream(whole()))
    for offset, junk in damage:
        data[offset : offset + len(junk)] = junk
    for number, junk in later:
        data[0xC0 + number * (PAGE + 8) :][: len(junk)] = junk
        data[0xC0 + number * (PAGE + 8) : 0xC0 + number * (PAGE + 8) + len(junk)] = junk
    path = tmp_path_factory.getbasetemp() / "damaged-stream"
    path.write_bytes(bytes(data[:cut]))
    try:
        image = open_image(path)
    except FormatError as error:
        assert "\n" not in str(error)
        return
    for run in image.physical.runs:
        for start in range(run.start, min(run.end, 80 * PAGE), PAGE):
            with contextlib.suppress(UnreadableMemoryError):
                assert len(image.physical.read(start, min(PAGE, run.end - start))) == min(PAGE, run.end - start)
