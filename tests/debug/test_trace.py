"""A call becomes plain data: arguments by their kinds, names of handles, bytes wherever the page is, and files."""

from __future__ import annotations

import json
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder import kernel, kernel_files
from builder.windows import WindowsBuilder
from coldframe.debug import Breakpoint, Hit, StackWalker
from coldframe.debug.current import Arrival
from coldframe.debug.prototypes import prototype
from coldframe.errors import ColdframeError
from coldframe.trace import FileWrites, SavedFiles, argument_text, event, write_of
from coldframe.trace.decode import arguments
from coldframe.trace.files import safe_name
from coldframe.windows import Guest

PAGE = 0x1000
STACK = 0xFFFFA10F_00010000
BUFFER, FILE_HANDLE = 0x1A_00020F80, 0x54
TEXT = bytes(range(32, 127)) * 4


class OneKernel:
    def __init__(self, symbol_file) -> None:
        self.symbol_file = symbol_file

    def find(self, identity):
        return self.symbol_file


class Call:
    """A thread of notepad.exe at the first instruction of nt!NtWriteFile, in a guest that stands still."""

    def __init__(self, layout: int = 0) -> None:
        files = kernel_files()
        if not files:
            pytest.skip("no kernel types: ../shared/symbols is absent")
        self.image = image = WindowsBuilder(kernel(files[layout]))
        self.process = image.add_process("notepad.exe", 812, 4)
        self.thread = image.add_thread(self.process, 1204)
        image.add_processor(self.thread)
        self.file = image.add_file("\\Users\\minint\\notes.txt")
        image.write_struct("_FILE_OBJECT", self.file, {"CurrentByteOffset.QuadPart": 0x777})
        image.set_handles(self.process, {FILE_HANDLE: (self.file, 0x12019F)})
        image.map(self.process.dtb, BUFFER & ~0xFFF, TEXT.rjust(PAGE, b"\0"))
        image.map(self.process.dtb, (BUFFER & ~0xFFF) + PAGE, b"second" * 100)
        image.map(image.kernel_dtb, STACK)
        self.values = [FILE_HANDLE, 0, 0, 0, 0x2000, BUFFER, 0x100, 0, 0]

    def hit(self, function: str = "NtWriteFile") -> Hit:
        self.image.finish()
        rsp = STACK + 0x100
        for number, value in enumerate(self.values[4:], 4):
            self.image.write(rsp + 8 + 8 * number, value.to_bytes(8, "little"))
        registers = self.image.registers(self.process) | {"rip": self.image.code(function), "rsp": rsp}
        registers |= dict(zip(("rcx", "rdx", "r8", "r9"), self.values, strict=False))
        guest = Guest.open(self.image.physical(), OneKernel(self.image.symbol_file), [registers])
        guest.pauses, guest.stacks = 0, StackWalker(guest)  # what a live guest has besides
        point = Breakpoint(guest, f"nt!{function}", registers["rip"])
        return Hit(guest, point, Arrival(0, MappingProxyType(registers), self.thread.address, self.process.address))

    def arguments(self, function: str = "NtWriteFile", limit: int = 1 << 16):
        return arguments(self.hit(function), prototype(function), limit)


def test_arguments_are_taken_from_registers_and_stack():
    call = Call()
    hit = call.hit()
    assert [hit.args[number] for number in range(9)] == call.values
    with pytest.raises(IndexError):
        hit.args[-1]
    assert (hit.process.pid, hit.thread.tid, hit.function) == (812, 1204, "nt!NtWriteFile")
    assert hit.memory[BUFFER : BUFFER + 4] == hit.memory.read(BUFFER, 4)


def test_an_event_is_plain_json_with_the_fields_that_scripts_rely_on():
    told = event(Call().hit())
    assert list(told) == ["time", "vcpu", "pid", "process", "tid", "function", "arguments", "stack"]
    assert json.loads(json.dumps(told)) == told
    assert (told["pid"], told["process"], told["tid"], told["vcpu"]) == (812, "notepad.exe", 1204, 0)
    assert told["stack"][0] == told["function"] == "nt!NtWriteFile"
    assert told["time"].endswith("Z")


def test_a_write_names_its_file_and_carries_its_bytes():
    call = Call()
    shown = call.arguments()
    assert shown["FileHandle"] == {"handle": "0x54", "type": "File", "name": "\\Users\\minint\\notes.txt"}
    buffer = shown["Buffer"]
    page = TEXT.rjust(PAGE, b"\0") + b"second" * 100
    assert bytes.fromhex(buffer["data"]) == page[BUFFER & 0xFFF :][:0x100]
    assert [entry["state"] for entry in buffer["pages"]] == ["valid", "valid"]
    assert shown["ByteOffset"] == {"address": "0x0", "value": 0x777}
    assert shown["Length"] == 0x100


def test_bytes_come_from_a_page_in_transition_and_from_a_prototype():
    call = Call()
    page = call.image.physical_of(BUFFER & ~0xFFF, call.process.dtb)
    call.image.set_entry(call.process.dtb, BUFFER, call.image.transition(page))
    proto = call.image.allocate_pool(16)
    second = call.image.physical_of((BUFFER & ~0xFFF) + PAGE, call.process.dtb)
    call.image.write(proto, call.image.hardware(second).to_bytes(8, "little"))
    call.image.set_entry(call.process.dtb, BUFFER + PAGE, call.image.prototype(proto))
    buffer = call.arguments()["Buffer"]
    assert [(entry["state"], entry["via"]) for entry in buffer["pages"]] == [
        ("transition", []),
        ("valid", ["prototype"]),
    ]
    assert "missing" not in buffer
    assert bytes.fromhex(buffer["data"])[0x80:].startswith(b"second")


def test_parts_that_cannot_be_read_are_named():
    call = Call()
    call.image.set_entry(call.process.dtb, BUFFER, call.image.paged(0, 0x1A3000))
    buffer = call.arguments()["Buffer"]
    assert buffer["missing"] == [{"address": f"{BUFFER:#x}", "size": 0x80}]
    assert "paging file 0" in buffer["pages"][0]["reason"]
    assert bytes.fromhex(buffer["data"])[0x80:].startswith(b"second")


def test_long_buffers_are_cut_and_say_so():
    buffer = Call().arguments(limit=16)["Buffer"]
    assert (buffer["size"], len(buffer["data"]), buffer["truncated"]) == (0x100, 32, True)


@pytest.mark.parametrize(("raw", "expected"), [(0x1234, 0x1234), ((1 << 64) - 2, 0x777), ((1 << 64) - 1, None)])
def test_the_byte_offset_is_a_number_or_the_files_position_or_its_end(raw, expected):
    call = Call()
    call.values[7] = BUFFER + 0x400
    call.image.write(BUFFER + 0x400, raw.to_bytes(8, "little"), call.process.dtb)
    assert call.arguments()["ByteOffset"] == {"address": f"{BUFFER + 0x400:#x}", "value": expected}


def test_strings_and_object_attributes_are_read_out_of_the_process():
    call = Call()
    where = BUFFER + 0x200
    text = "\\??\\C:\\Temp\\x.txt"
    call.image.write(where, text.encode("utf-16-le"), call.process.dtb)
    call.image.write_struct(
        "_UNICODE_STRING", where + 0x80, {"Length": 2 * len(text), "Buffer": where}, call.process.dtb
    )
    call.image.write_struct(
        "_OBJECT_ATTRIBUTES",
        where + 0xA0,
        {"ObjectName": where + 0x80, "RootDirectory": FILE_HANDLE},
        call.process.dtb,
    )
    call.values[:3] = [0x3000, 0x100, where + 0xA0]
    shown = call.arguments("NtOpenFile")
    assert shown["ObjectAttributes"]["name"] == text
    assert shown["ObjectAttributes"]["root"]["type"] == "File"
    assert shown["DesiredAccess"] == "0x100"


def test_an_argument_that_cannot_be_read_does_not_keep_the_others_from_it():
    call = Call()
    call.values[:3] = [0x3000, 0x100, 0x7FFE_DEAD0000]
    shown = call.arguments("NtOpenFile")
    assert "error" in shown["ObjectAttributes"]
    assert shown["DesiredAccess"] == "0x100"


def test_a_function_without_prototype_shows_its_register_arguments():
    assert arguments(Call().hit(), None, 0) == {"arg0": "0x54", "arg1": "0x0", "arg2": "0x0", "arg3": "0x0"}


def test_the_bytes_a_process_wrote_to_a_file_are_gathered_by_offset(tmp_path):
    call = Call()
    writes = FileWrites()
    write = writes.add(event(call.hit()))
    assert write is not None and write.complete
    assert (write.file, write.offset) == ("\\Users\\minint\\notes.txt", 0x777)
    saved = writes.save(tmp_path / "out")
    path = saved[write.file]
    assert path.name == "Users_minint_notes.txt"
    assert path.read_bytes() == bytes(0x777) + write.data


def test_what_is_no_file_write_is_no_write():
    told = event(Call().hit())
    assert write_of({**told, "function": "nt!NtReadFile"}) is None
    assert write_of({**told, "arguments": {}}) is None


@given(st.text(max_size=300))
def test_a_saved_name_is_one_harmless_file_name(name):
    safe = safe_name(name)
    assert safe and not set(safe) & set('/\\:*?"<>|\0') and safe not in (".", "..") and len(safe) <= 201
    assert not safe.startswith((".", " "))


def test_where_no_folder_can_be_is_said(tmp_path):
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(ColdframeError, match="expected a folder"):
        SavedFiles(tmp_path / "taken")


def test_two_files_never_share_a_saved_name(tmp_path):
    writes = FileWrites()
    base = event(Call().hit())
    for name in ("\\a\\b.txt", "\\a_b.txt", "\\A\\B.txt", "\\con"):
        arguments_ = dict(base["arguments"]) | {"FileHandle": {"handle": "0x4", "type": "File", "name": name}}
        writes.add(dict(base) | {"arguments": arguments_})
    saved = writes.save(tmp_path)
    assert len({path.name.lower() for path in saved.values()}) == 4


def test_arguments_have_a_text_for_people():
    call = Call()
    shown = call.arguments()
    assert argument_text(shown["FileHandle"]) == "0x54 File \\Users\\minint\\notes.txt"
    assert argument_text(shown["Buffer"]).startswith(f"{BUFFER:#x} 256 bytes (valid): b'")
    assert argument_text(shown["ByteOffset"]) == f"0x0 -> {0x777}"
    assert argument_text(shown["Length"]) == "256"
    assert argument_text({"address": "0x5", "error": "gone"}) == "0x5 (gone)"
    assert argument_text({"address": "0x5", "name": "a", "root": None}) == '0x5 "a"'
