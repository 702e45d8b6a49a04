"""The disk holds what was put on it, behind an MBR or a GPT, and its paging file lies in pieces."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_disk() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minint_disk", ROOT / "guest" / "disk.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


disk = load_disk()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool in ("clang", "mkntfs", "ntfscp", "qemu-img"):
        if not shutil.which(tool):
            pytest.skip(f"needs {tool}")
    folder = tmp_path_factory.mktemp("built")
    (folder / "system32").mkdir()
    (folder / "ntoskrnl.exe").write_bytes(b"kernel" * 100_000)
    (folder / "system32" / "ntdll.dll").write_bytes(b"ntdll")
    return folder


@pytest.mark.parametrize("partitions", ["mbr", "gpt"])
def test_files_come_back_byte_for_byte(built: Path, tmp_path: Path, partitions: str) -> None:
    made = disk.make_disk(tmp_path / "a.qcow2", built=built, megabytes=32, partitions=partitions)
    assert disk.read_file(made, "\\Windows\\System32\\ntoskrnl.exe") == b"kernel" * 100_000
    assert disk.read_files(made, ["/Windows/System32/ntdll.dll"]) == {"/Windows/System32/ntdll.dll": b"ntdll"}
    assert disk.list_folder(made, "\\") == ["Users", "Windows", "pagefile.sys"]
    assert disk.list_folder(made, "\\Users\\minint") == ["Documents"]
    subprocess.run(["qemu-img", "check", "-q", made], check=True)


def test_paging_files_lie_in_pieces(built: Path, tmp_path: Path) -> None:
    sizes = {"\\pagefile.sys": 8 << 20, "\\swapfile.sys": 2 << 20}
    made = disk.make_disk(tmp_path / "a.qcow2", built=built, megabytes=48, pagefiles=sizes)
    with disk.open_volume(made) as image:
        for path, size in sizes.items():
            words = ["ntfsinfo", "-v", "-f", "-F", path.replace("\\", "/"), image]
            info = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            assert int(re.search(r"Initialized size:\s+(\d+)", info)[1]) == size  # type: ignore[index]
            assert int(re.search(r"fragments: (\d+)", info)[1]) >= size // (64 * 4096)  # type: ignore[index]


def test_a_second_disk_is_a_copy_of_the_first_until_something_changes(built: Path, tmp_path: Path) -> None:
    first = disk.make_disk(tmp_path / "1.qcow2", built=built, megabytes=32).read_bytes()
    assert disk.make_disk(tmp_path / "2.qcow2", built=built, megabytes=32).read_bytes() == first
    (built / "system32" / "ntdll.dll").write_bytes(b"other")
    third = disk.make_disk(tmp_path / "3.qcow2", built=built, megabytes=32)
    assert disk.read_file(third, "\\Windows\\System32\\ntdll.dll") == b"other"
    (built / "system32" / "ntdll.dll").write_bytes(b"ntdll")


def test_errors_say_what_is_missing(built: Path, tmp_path: Path) -> None:
    made = disk.make_disk(tmp_path / "a.qcow2", built=built, megabytes=32)
    with pytest.raises(disk.DiskError, match="none"):
        disk.read_file(made, "\\none")
    with pytest.raises(disk.DiskError, match=r"guest/build\.py"):
        disk.make_disk(tmp_path / "b.qcow2", built=tmp_path)
    (tmp_path / "blank").write_bytes(bytes(1 << 20))
    with pytest.raises(disk.DiskError, match="no NTFS partition"):
        disk.read_file(tmp_path / "blank", "\\a")
    done = subprocess.run([sys.executable, ROOT / "guest" / "disk.py", "--read", "\\a", "no.qcow2"], check=False)
    assert done.returncode == 1
