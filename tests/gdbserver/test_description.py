"""gdb takes the target descriptions, and packets survive being escaped."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldframe.errors import FormatError
from coldframe.gdbserver.connection import LONGEST, ClientGoneError, PacketReader, escape
from coldframe.gdbserver.description import Description
from coldframe.qemu.packets import expand, packet


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed (scripts/setup does)")
@pytest.mark.parametrize(("wide", "architecture"), [(True, "i386:x86-64"), (False, "i386")])
def test_gdb_takes_the_description(tmp_path: Path, *, wide: bool, architecture: str) -> None:
    description = Description(wide=wide)
    file = tmp_path / "target.xml"
    file.write_text(description.xml())
    words = [f"set tdesc filename {file}", "show architecture", "maint print registers"]
    done = subprocess.run(
        ["gdb", "-nx", "-batch", *(word for line in words for word in ("-ex", line))],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "warning" not in done.stderr
    assert f'(currently "{architecture}")' in done.stdout
    seen = re.findall(r"^ *(\w+) +\d+ +\d+ +\d+ +(\d+) ", done.stdout, re.MULTILINE)
    sizes = {name: int(size) for name, size in seen}
    for register in description.registers:
        wanted = 16 if register.kind == "i387_ext" else register.size  # gdb pads its long double
        assert sizes[register.shown] in (register.size, wanted), register


@given(st.dictionaries(st.sampled_from(Description(wide=True).registers), st.integers(0, 1 << 128)))
def test_registers_survive_their_encoding(values: dict) -> None:
    description = Description(wide=True)
    named = {register.name: value % (1 << 8 * register.size) for register, value in values.items()}
    data = description.encoded(named)
    assert len(data) == 2 * description.size
    assert description.decoded(data) == named


def test_registers_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(FormatError):
        Description(wide=True).decoded(b"00")


@given(st.lists(st.binary(max_size=200), max_size=5), st.integers(1, 50))
def test_packets_come_out_as_they_went_in_however_they_are_cut(payloads: list[bytes], size: int) -> None:
    wire = b"".join(packet(escape(payload)) for payload in payloads)
    assert all(expand(escape(payload)) == payload for payload in payloads)  # as QEMU's own clients undo it
    reader, found = PacketReader(), []
    for at in range(0, len(wire), size):
        found += reader.feed(wire[at : at + size])
    assert found == [(payload, True) for payload in payloads]


@given(st.binary(max_size=2000))
def test_any_bytes_are_packets_or_nothing(data: bytes) -> None:
    for payload, _ in PacketReader().feed(data):
        assert len(payload) <= len(data)


def test_a_packet_without_an_end_is_refused() -> None:
    with pytest.raises(ClientGoneError):
        list(PacketReader().feed(b"$" + b"m" * (LONGEST + 1)))
