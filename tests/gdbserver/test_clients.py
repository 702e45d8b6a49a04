"""Clients that break the protocol, or off: the server goes on, and so does the guest, with no breakpoint left."""

from __future__ import annotations

import io
import random
import socket
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from coldframe.cli.main import run
from coldframe.minint import Minint, start
from coldframe.target import attach
from gdbserver.programs import Client, runs, serving, words_of, writes_on

pytestmark = pytest.mark.minint


@pytest.fixture(scope="module")
def machine() -> Iterator[Minint]:
    with start(vcpus=2, options="STATES=0") as running:
        yield running


@pytest.fixture(scope="module")
def place(machine: Minint, write_file: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a server of notepad.exe listens."""
    path = tmp_path_factory.mktemp("gdb") / "gdb.sock"
    with serving(words_of(machine), path):
        yield path


@pytest.fixture(scope="module")
def write_file(machine: Minint) -> int:
    with attach(machine.qmp, symbols=[machine.symbols_folder]) as guest:
        return guest.symbol("nt!NtWriteFile")


def test_a_client_stops_the_guest_and_lets_it_go(machine: Minint, place: Path, write_file: int) -> None:
    with Client(place) as client:
        assert client.ask(b"?").startswith(b"T05")
        assert machine.control("query-status")["status"] != "running"  # type: ignore[index,call-overload]
        assert client.ask(b"Z0,%x,1" % write_file) == b"OK"
        for _ in range(3):
            assert b"swbreak" in client.ask(b"vCont;c")
        assert client.ask(b"D") == b"OK"
    assert runs(machine) and writes_on(machine)


def test_ctrl_c_of_the_client_stops_the_guest(machine: Minint, place: Path) -> None:
    with Client(place) as client:
        for _ in range(3):
            client.send(b"c")
            time.sleep(0.1)
            assert runs(machine)
            assert client.interrupt().startswith(b"T02")


def test_the_client_may_be_killed_while_the_guest_runs(machine: Minint, place: Path, write_file: int) -> None:
    with Client(place) as client:
        assert client.ask(b"Z1,%x,1" % (write_file + 1)) == b"OK"  # within an instruction: never hit
        client.send(b"vCont;c")
        time.sleep(0.2)
    assert runs(machine) and writes_on(machine)
    with Client(place) as client:
        client.ask(b"?")
        assert client.ask(b"Z0,%x,1" % write_file) == b"OK"
        assert client.ask(b"c").startswith(b"T05")
    assert runs(machine) and writes_on(machine)  # gone at a breakpoint


@pytest.mark.parametrize(
    ("packet", "answer"),
    [
        (b"mfffffffffffffff0,100", b"E16"),
        (b"m1000,4", b"E0e"),
        (b"mzz,4", b"E16"),
        (b"m", b"E16"),
        (b"M1000,4:01020304", b"E0d"),
        (b"M1000,4:01", b"E16"),
        (b"M1000,1:zz", b"E16"),
        (b"X1000,0:", b"OK"),
        (b"p1000", b"E16"),
        (b"P0=11", b"E16"),
        (b"Gzz", b"E16"),
        (b"Z9,1000,1", b"E16"),
        (b"Z2,1000,0", b"E16"),
        (b"Z0,,", b"E16"),
        (b"z0,1234,1", b"OK"),
        (b"Hg7fffffff", b"E03"),
        (b"Hgp9999.1", b"E03"),
        (b"Hg" + b"1" * 100, b"E16"),
        (b"T7fffffff", b"E03"),
        (b"vCont;x", b"E16"),
        (b"vCont;s:7fffffff", b"E03"),
        (b"qXfer:features:read:other.xml:0,10", b"E02"),
        (b"qXfer:features:read:target.xml:0,zz", b"E16"),
        (b"qXfer:threads:write::0,10", b""),
        (b"qRcmd,zz", b"E16"),
        (b"qThreadExtraInfo,", b"E16"),
        (b"vMustReplyEmpty", b""),
        (b"vFile:open:2f6574632f706173737764,0,0", b"F-1,2"),
        (b"vFile:open:2f636f6c646672616d652e73796d626f6c73,1,0", b"F-1,d"),
        (b"vFile:pread:9,10,0", b"F-1,9"),
        (b"vFile:pread:3,-5,0", b"E16"),
        (b"vFile:unlink:2f", b""),
        (b"\xff\xfe", b""),
        (b"", b""),
    ],
)
def test_a_broken_packet_has_its_error(place: Path, packet: bytes, answer: bytes) -> None:
    with Client(place) as client:
        assert client.ask(packet) == answer
        assert client.ask(b"QStartNoAckMode") == b"OK"


def test_garbage_ends_no_server(machine: Minint, place: Path) -> None:
    chance = random.Random(6)
    alphabet = b"$#+-*}\x03:;,0123456789abcdefgGmMpPZzHTvqQXsD?kx" + bytes(chance.randbytes(8))
    for _ in range(60):
        with Client(place) as client:
            blob = bytes(chance.choice(alphabet) for _ in range(chance.randrange(1, 400)))
            framed = blob.replace(b"#", b"").replace(b"$", b"").replace(b"}", b"")
            client.socket.sendall(blob + b"$%b#%02x" % (framed, sum(framed) & 0xFF))
            client.socket.settimeout(0.02)
            try:
                client.socket.recv(100)
            except OSError:
                continue
    assert runs(machine)
    with Client(place) as client:
        assert client.ask(b"?").startswith(b"T")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("help", "pte"),
        ("", "pte"),
        ("ps", "notepad.exe"),
        ("stack", "notepad!"),
        ("pte $rip", "valid at physical"),
        ("pte 0x1000", "nothing is mapped there"),
        ("pte nt!NtWritFile", "did you mean NtWriteFile"),
        ("dump -o /tmp/x", "verbs"),
        ("search --yara /etc/passwd", "names no files"),
        ("ps 'unfinished", "No closing quotation"),
    ],
)
def test_monitor_carries_out_verbs(place: Path, line: str, said: str) -> None:
    with Client(place) as client:
        client.send(b"qRcmd," + line.encode().hex().encode())
        text = b""
        while (answer := client.receive()) != b"OK":
            assert answer[:1] == b"O"
            text += bytes.fromhex(answer[1:].decode())
        assert said in text.decode()


def test_lldb_is_told_of_regions(place: Path, write_file: int) -> None:
    with Client(place) as client:
        assert client.ask(b"qMemoryRegionInfo:%x" % write_file) == b"start:%x;size:1000;permissions:rx;" % (
            write_file & ~0xFFF
        )
        assert client.ask(b"qMemoryRegionInfo:0").startswith(b"start:0;size:")
        assert b"ptrsize:8" in client.ask(b"qHostInfo")


@pytest.mark.parametrize("blob", [b"$" + b"m" * 70_000, b"$?#3f" * 5000, b"-" * 100, b"+" * 70_000])
def test_a_flood_is_ended(machine: Minint, place: Path, blob: bytes) -> None:
    with Client(place) as client:
        try:
            client.socket.sendall(blob)
            while blob[0] != 0x2B and client.socket.recv(1 << 16):
                pass
        except OSError:
            pass
    with Client(place) as client:
        assert client.ask(b"?").startswith(b"T")
    assert runs(machine)


def test_a_second_client_is_sent_away(place: Path) -> None:
    with Client(place) as client:
        client.ask(b"?")
        with Client(place) as other, pytest.raises(OSError):
            other.ask(b"?")
        assert client.ask(b"?").startswith(b"T")


def test_a_place_that_is_taken_is_told_in_a_line(machine: Minint, place: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        file = tmp_path / "file"
        file.write_text("keep")
        missing = tmp_path / "no" / "gdb.sock"
        for where in (f"127.0.0.1:{taken.getsockname()[1]}", str(place), str(file), str(missing)):
            said = refused(words_of(machine, "-l", where))
            assert said.startswith("coldframe: cannot listen on") and "--listen" in said
        assert file.read_text() == "keep"
    assert "expected --listen" in refused(words_of(machine, "-l", "1.2.3.4"), 2)
    assert "expected --listen" in refused(words_of(machine, "-l", ":70000"), 2)


def refused(words: list[str], status: int = 1) -> str:
    said = io.StringIO()
    with redirect_stderr(said):
        assert run(words) == status
    return said.getvalue().splitlines()[-1]
