"""Symbols are found by name, GUID and age along the symbol path; a miss says where it was looked."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from coldframe.errors import FormatError, SymbolFileNotFoundError
from coldframe.symbols import PdbIdentity, SymbolStore, load_pdb, write_isf
from coldframe.symbols.cabinet import unpack
from coldframe.symbols.path import Location, local_path, parse
from symbols import handmade as make

IDENTITY = PdbIdentity("ntkrnlmp.pdb", make.GUID_TEXT, make.AGE)
OTHER = PdbIdentity("ntkrnlmp.pdb", "F" * 32, make.AGE)
KEY = f"{make.GUID_TEXT}{make.AGE:X}"
PDB = make.pdb(b"", make.public("NtClose", 1, 0), [make.section(".text", 0x1000)])


def cabinet(name: str, content: bytes) -> bytes:
    """A cabinet with one file, compressed with MSZIP: https://learn.microsoft.com/previous-versions/bb267310."""
    blocks, history = [], b""
    for at in range(0, len(content), 0x8000):
        part = content[at : at + 0x8000]
        packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=history) if history else zlib.compressobj(9, wbits=-15)
        packed = b"CK" + packer.compress(part) + packer.flush()
        blocks.append(struct.pack("<IHH", 0, len(packed), len(part)) + packed)
        history = part
    file = struct.pack("<IIHHHH", len(content), 0, 0, 0, 0, 0x20) + name.encode() + b"\0"
    start = 36 + 8 + len(file)
    size = start + sum(map(len, blocks))
    header = struct.pack("<4sIIIIIBBHHHHH", b"MSCF", 0, size, 0, 44, 0, 3, 1, 1, 1, 0, 0, 0)
    return header + struct.pack("<IHH", start, len(blocks), 1) + file + b"".join(blocks)


def put(path: Path, content: bytes = PDB) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def put_isf(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = put(path.parent / "source.tmp")
    write_isf(load_pdb(source), path)
    source.unlink()
    return path


def check(store: SymbolStore, path: Path | None = None) -> None:
    found = store.find(IDENTITY)
    assert found.identity == IDENTITY
    assert found.symbols.get("NtClose") == 0x1000
    assert path is None or Path(found.path) == path
    assert store.find(IDENTITY) is found


def miss(store: SymbolStore, identity: PdbIdentity = IDENTITY) -> str:
    with pytest.raises(SymbolFileNotFoundError) as caught:
        store.find(identity)
    with pytest.raises(SymbolFileNotFoundError):
        store.find(identity)
    message = str(caught.value)
    assert "\n" not in message
    assert identity.guid in message
    assert f"age {identity.age:x}" in message
    return message


@pytest.mark.parametrize(
    "place",
    [
        "ntkrnlmp.pdb",
        f"ntkrnlmp.pdb/{KEY}/ntkrnlmp.pdb",
        f"ntkrnlmp.pdb/{KEY.lower()}/ntkrnlmp.pdb",
        "symbols/pdb/ntkrnlmp.pdb",
        "a/another name.pdb",
        "UPPER.PDB",
    ],
)
def test_a_pdb_is_found_in_a_folder(tmp_path: Path, place: str) -> None:
    path = put(tmp_path / place)
    put(tmp_path / "a" / "other.pdb", PDB.replace(make.GUID, bytes(16)))
    check(SymbolStore([tmp_path]), path)
    check(SymbolStore(nt_symbol_path=str(tmp_path)), path)
    check(SymbolStore(nt_symbol_path=f"/nowhere;srv*{tmp_path}"), path)
    miss(SymbolStore([tmp_path]), OTHER)


@pytest.mark.parametrize("tree", ["", "ntkrnlmp.pdb/", "windows/ntkrnlmp.pdb/"])
@pytest.mark.parametrize("suffix", [".json", ".json.xz", ".json.gz"])
def test_an_isf_file_is_found_by_its_name(tmp_path: Path, tree: str, suffix: str) -> None:
    path = put_isf(tmp_path / f"{tree}{make.GUID_TEXT}-{make.AGE}{suffix}")
    check(SymbolStore([tmp_path]), path)
    miss(SymbolStore([tmp_path]), OTHER)


def test_a_guid_may_be_written_as_windows_does(tmp_path: Path) -> None:
    put(tmp_path / "ntkrnlmp.pdb")
    told = IDENTITY.guid.lower()
    dashed = f"{{{told[:8]}-{told[8:12]}-{told[12:16]}-{told[16:20]}-{told[20:]}}}"
    found = SymbolStore([tmp_path]).find(PdbIdentity(IDENTITY.name, dashed, IDENTITY.age))
    assert found.identity == IDENTITY


def test_an_isf_file_of_any_name_is_found_by_what_it_says(tmp_path: Path) -> None:
    check(SymbolStore([tmp_path]), put_isf(tmp_path / "kernel.json.xz"))


def test_a_store_in_two_tiers(tmp_path: Path) -> None:
    put(tmp_path / "index2.txt", b"")
    check(SymbolStore([tmp_path]), put(tmp_path / "nt" / "ntkrnlmp.pdb" / KEY / "ntkrnlmp.pdb"))


def test_a_file_may_be_given_itself(tmp_path: Path) -> None:
    path = put(tmp_path / "renamed.bin")
    check(SymbolStore([path]), path)
    assert "has GUID 0302" in miss(SymbolStore([put(tmp_path / "ntkrnlmp.pdb")]), OTHER)


def test_the_age_counts_where_the_place_does_not_name_it(tmp_path: Path) -> None:
    put(tmp_path / "ntkrnlmp.pdb")
    older = PdbIdentity(IDENTITY.name, IDENTITY.guid, 2)
    assert f"has GUID {make.GUID_TEXT}, age 3" in miss(SymbolStore([tmp_path]), older)


@pytest.mark.parametrize("text", ["PATH:{}", "{}", "path: {}\r\n", "PATH:..\\..\\kept\\kernel.pdb"])
def test_a_pointer_leads_to_the_file(tmp_path: Path, text: str) -> None:
    put(tmp_path / "store/kept/kernel.pdb")
    path = put(tmp_path / "elsewhere/deep/down/k.pdb")
    put(tmp_path / "store/ntkrnlmp.pdb" / KEY / "file.ptr", text.format(path).encode())
    check(SymbolStore([tmp_path / "store"]))


def test_a_pointer_may_say_that_there_is_none(tmp_path: Path) -> None:
    put(tmp_path / "ntkrnlmp.pdb" / KEY / "file.ptr", b"MSG: not here")
    assert "(nothing)" in miss(SymbolStore([tmp_path]))


def test_a_compressed_pdb_is_unpacked(tmp_path: Path, ntdll: Path) -> None:
    big = ntdll.read_bytes()
    path = put(tmp_path / "ntdll.pd_", cabinet("ntdll.pdb", big))
    assert unpack(path) == big
    if shutil.which("cabextract"):
        subprocess.run(["cabextract", "-q", "-d", str(tmp_path / "out"), str(path)], check=True)
        assert (tmp_path / "out" / "ntdll.pdb").read_bytes() == big
    found = SymbolStore([tmp_path]).find(load_pdb(ntdll).identity)
    assert found.symbols.get("NtWriteFile") == load_pdb(ntdll).symbols.get("NtWriteFile")
    put(tmp_path / "store/ntkrnlmp.pdb" / KEY / "ntkrnlmp.pd_", cabinet("ntkrnlmp.pdb", PDB))
    check(SymbolStore([tmp_path / "store"]))


@pytest.mark.parametrize("content", [b"MSCF", b"MSCF" + bytes(100), cabinet("x", PDB)[:-20]])
def test_a_damaged_cabinet_is_a_format_error(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "ntkrnlmp.pdb" / KEY / "ntkrnlmp.pd_", content)
    with pytest.raises(FormatError):
        unpack(path)
    assert str(path) in miss(SymbolStore([tmp_path]))


def test_a_damaged_file_is_passed_over_and_told(tmp_path: Path) -> None:
    put(tmp_path / "one/ntkrnlmp.pdb" / KEY / "ntkrnlmp.pdb", PDB[:900])
    path = put(tmp_path / "two/ntkrnlmp.pdb")
    check(SymbolStore([tmp_path / "one", tmp_path / "two"]), path)
    assert "ntkrnlmp.pdb: " in miss(SymbolStore([tmp_path / "one"]))


@pytest.mark.parametrize(
    "name", ["../x.pdb", "a/b.pdb", "a\\b.pdb", "", ".", "..", "x\0.pdb", "x" * 300, "c:x.pdb", "x\n.pdb"]
)
def test_a_hostile_name_never_becomes_a_path(tmp_path: Path, name: str) -> None:
    put(tmp_path / "x.pdb")
    store = SymbolStore([tmp_path / "below"], nt_symbol_path="srv*http://127.0.0.1:1/")
    assert "damaged" in miss(store, PdbIdentity(name, make.GUID_TEXT, make.AGE))


def test_a_miss_names_every_place() -> None:
    message = miss(SymbolStore(["/nowhere"], nt_symbol_path="srv*C:\\Symbols*D:\\more;cache*"))
    assert "/nowhere (no such file or folder)" in message
    assert "C:\\Symbols (no such" in message
    assert "D:\\more (no such" in message
    assert "_NT_SYMBOL_PATH" in message
    assert "no place to look in" in miss(SymbolStore())


# A server on this machine


class Server:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.promise: int | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                content = outer.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(outer.promise or len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/download/symbols"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def put(self, name: str, content: bytes) -> None:
        self.files[f"/download/symbols/ntkrnlmp.pdb/{KEY}/{name}"] = content


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()
    made.thread.join()


@pytest.mark.parametrize("compressed", [False, True])
def test_a_download_is_kept_in_the_downstream_store(tmp_path: Path, server: Server, compressed: bool) -> None:
    server.put("ntkrnlmp.pd_" if compressed else "ntkrnlmp.pdb", cabinet("x", PDB) if compressed else PDB)
    kept = tmp_path / "kept" / "ntkrnlmp.pdb" / KEY / "ntkrnlmp.pdb"
    path = f"srv*{tmp_path / 'kept'}*{server.url}"
    check(SymbolStore(nt_symbol_path=path), kept)
    assert kept.read_bytes() == PDB
    assert [p.name for p in kept.parent.iterdir()] == ["ntkrnlmp.pdb"]
    asked = len(server.asked)
    assert asked == 1 + compressed
    check(SymbolStore(nt_symbol_path=path), kept)
    assert len(server.asked) == asked


def test_without_a_downstream_store_it_is_kept_in_the_cache(cache_home: Path, server: Server) -> None:
    server.put("ntkrnlmp.pdb", PDB)
    kept = cache_home / "downloads" / "ntkrnlmp.pdb" / KEY / "ntkrnlmp.pdb"
    for path in (
        f"srv*{server.url}/",
        f"srv**{server.url}",
        server.url,
        f"cache*;{server.url}",
        f"symsrv*symsrv.dll*{server.url}",
    ):
        check(SymbolStore(nt_symbol_path=path), kept)
    assert len(server.asked) == 1


def test_offline_asks_no_server_and_says_so(tmp_path: Path, server: Server) -> None:
    server.put("ntkrnlmp.pdb", PDB)
    path = f"srv*{tmp_path}*{server.url}"
    assert f"{server.url} (not asked: offline)" in miss(SymbolStore(nt_symbol_path=path, offline=True))
    assert server.asked == []
    check(SymbolStore(nt_symbol_path=path))
    check(SymbolStore(nt_symbol_path=path, offline=True))


def test_what_the_server_does_not_have_is_told_with_the_status(tmp_path: Path, server: Server) -> None:
    message = miss(SymbolStore(nt_symbol_path=f"srv*{tmp_path}*{server.url}"))
    assert f"{server.url} (HTTP 404 Not Found)" in message
    assert str(tmp_path) in message
    assert len(server.asked) == 2
    assert list(tmp_path.rglob("*.pdb")) in ([], [tmp_path / "ntkrnlmp.pdb"])


def test_a_download_that_breaks_off_leaves_nothing(tmp_path: Path, server: Server) -> None:
    server.put("ntkrnlmp.pdb", PDB)
    server.promise = len(PDB) + 100
    assert "broke off" in miss(SymbolStore(nt_symbol_path=f"srv*{tmp_path}*{server.url}"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("content", [b"<html>sign in</html>", PDB.replace(make.GUID, bytes(16)), b"MSCF!", b""])
def test_what_is_not_the_pdb_is_not_kept(tmp_path: Path, server: Server, content: bytes) -> None:
    server.put("ntkrnlmp.pdb", content)
    assert "gave no such PDB" in miss(SymbolStore(nt_symbol_path=f"srv*{tmp_path}*{server.url}"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_server_that_does_not_answer_is_told(tmp_path: Path) -> None:
    assert "(no answer: " in miss(SymbolStore(nt_symbol_path=f"srv*{tmp_path}*http://127.0.0.1:1/symbols"))


def test_a_place_before_the_server_spares_it(tmp_path: Path, server: Server) -> None:
    put(tmp_path / "ntkrnlmp.pdb")
    check(SymbolStore([tmp_path], nt_symbol_path=server.url))
    assert server.asked == []


# The symbol path


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("", []),
        (";;", []),
        ("/a;/b ; /a", [Location("/a"), Location("/b")]),
        ("srv*/c*https://x.test:8080/s", [Location("/c", "/c"), Location("https://x.test:8080/s", "/c")]),
        ("SRV*https://x.test/s", [Location("https://x.test/s")]),
        ("srv*/c*/d*https://x.test", [Location("/c", "/c"), Location("/d", "/c"), Location("https://x.test", "/c")]),
        ("srv**https://x.test", [Location("", ""), Location("https://x.test", "")]),
        ("symsrv*symsrv.dll*/c*https://x.test", [Location("/c", "/c"), Location("https://x.test", "/c")]),
        ("cache*/c;/a;srv*https://x.test", [Location("/c"), Location("/a", "/c"), Location("https://x.test", "/c")]),
        ("C:\\Symbols;\\\\server\\share", [Location("C:\\Symbols"), Location("\\\\server\\share")]),
        ('"/with space"', [Location("/with space")]),
    ],
)
def test_the_symbol_path_is_read_as_the_debuggers_do(text: str, places: list[Location]) -> None:
    assert parse(text) == places


def test_windows_separators_and_file_urls_are_understood() -> None:
    assert local_path("..\\a\\b") == Path("../a/b")
    assert local_path("file:///tmp/a%20b") == Path("/tmp/a b")
    assert local_path("~/x") == Path.home() / "x"


def test_real_kernels_are_found_in_the_shared_tree(kernels: list[Path]) -> None:
    store = SymbolStore([kernels[0].parent.parent])
    for path in kernels[:2]:
        guid, age = path.name.split(".")[0].split("-")
        assert store.find(PdbIdentity("ntkrnlmp.pdb", guid, int(age))).symbols["NtWriteFile"]
    assert json.dumps(store.find(PdbIdentity("ntkrnlmp.pdb", guid, int(age))).path)
