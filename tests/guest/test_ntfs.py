"""The NTFS code and ntfs-3g agree about every byte, name and cluster, whatever was done to the volume."""

import contextlib
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from guest.conftest import Harness

Start = Callable[[Path], Harness]
Make = Callable[..., Path]
NOT_FOUND, NO_PATH, COLLISION, FULL, BAD_NAME = "0xC0000034", "0xC000003A", "0xC0000035", "0xC000007F", "0xC0000033"


def pattern(length: int, seed: int) -> bytes:
    """What `fill` writes."""
    with np.errstate(over="ignore"):
        words = (np.arange(length, dtype=np.uint64) + np.uint64(seed * 2654435761)) * np.uint64(6364136223846793005)
    return (words >> np.uint64(56)).astype(np.uint8).tobytes()


def ntfscat(image: Path, path: str) -> bytes:
    return subprocess.run(["ntfscat", "-f", image, path], check=True, capture_output=True).stdout


def ntfsls(image: Path, path: str) -> set[str]:
    out = subprocess.run(["ntfsls", "-f", "-p", path, image], check=True, capture_output=True, text=True).stdout
    return set(out.splitlines()) - {".", ".."}


def assert_sound(image: Path) -> None:
    """ntfsfix mounts it; ntfsresize finds that $Bitmap marks exactly the clusters that the records use."""
    subprocess.run(["ntfsfix", "-n", image], check=True, capture_output=True)
    done = subprocess.run(["ntfsresize", "-f", "-i", "-P", image], check=False, capture_output=True, text=True)
    accounted = "Collecting resizing constraints" in done.stdout and "accounting failed" not in done.stdout.lower()
    assert accounted, done.stdout + done.stderr


def test_a_file_grows_from_its_record_into_clusters(make_volume: Make, ntfs: Start) -> None:
    image = make_volume()
    run = ntfs(image)
    run("create", "\\a.txt")
    assert run("put", "\\a.txt", "0 48656c6c6f") == []
    assert run("runs", "\\a.txt") == []
    run("fill", "\\a.txt", "5 100000 7")
    assert run("get", "\\A.TXT", "0 8")[0] == (b"Hello" + pattern(3, 7)).hex()
    assert len(run("runs", "\\a.txt")) == 1
    assert run.close() == 0
    assert ntfscat(image, "/a.txt") == b"Hello" + pattern(100000, 7)
    assert_sound(image)


def test_what_was_never_written_reads_as_zeros(make_volume: Make, ntfs: Start) -> None:
    image = make_volume()
    run = ntfs(image)
    run("create", "\\b")
    run("fill", "\\b", "0 300000 1")
    run("size", "\\b", "0")
    run("size", "\\b", "200000")
    run("put", "\\b", "150001 ff")
    assert run("get", "\\b", "149998 6") == ["000000ff0000"]
    assert run.close() == 0
    assert ntfscat(image, "/b") == bytes(150001) + b"\xff" + bytes(200000 - 150002)
    assert_sound(image)


def test_errors_are_the_statuses_of_nt(make_volume: Make, ntfs: Start) -> None:
    run = ntfs(make_volume())
    assert run("stat", "\\none") == [NOT_FOUND]
    assert run("stat", "\\none\\a") == [NO_PATH]
    assert run("create", "\\$MFT") == [COLLISION]
    assert run("create", "\\a*b") == [BAD_NAME]
    assert run("create", "\\" + "x" * 256) == [BAD_NAME]
    run("mkdir", "\\d")
    assert run("mkdir", "\\D") == [COLLISION]
    run("create", "\\d\\f")
    assert run("stat", "\\d\\f\\g") == [NO_PATH]
    assert run("get", "\\d\\f", "0 1") == ["0xC0000011"]


@pytest.mark.parametrize("cluster", [512, 2048, 4096, 16384])
def test_directories_grow_into_trees_that_ntfs_3g_lists(make_volume: Make, ntfs: Start, cluster: int) -> None:
    image = make_volume(24, cluster)
    run = ntfs(image)
    choice = random.Random(cluster)
    run("mkdir", "\\many")
    names = {f"{choice.choice('abcXYZäé日')}{choice.randrange(10**9)}{'n' * choice.randrange(40)}" for _ in range(700)}
    for name in names:
        assert run("create", f"\\many\\{name}") == []
    listed = [line.split(" ", 1)[1] for line in run("ls", "\\many")]
    assert len(listed) == len(names)
    assert set(listed) == names
    assert listed == sorted(listed, key=str.upper)
    for name in choice.sample(sorted(names), 40):
        assert run("create", f"\\many\\{name.swapcase() if name.isascii() else name}") == [COLLISION]
    assert run.close() == 0
    assert ntfsls(image, "/many") == names
    assert_sound(image)


def test_data_whose_runs_another_record_holds_can_be_read_and_written_in_place(
    make_volume: Make, ntfs: Start, tmp_path: Path
) -> None:
    image = make_volume()
    run = ntfs(image)
    run("fragment", "1")
    run("create", "\\f")
    run("fill", "\\f", "0 300000 9")
    assert run.close() == 0
    stream = tmp_path / "stream"
    stream.write_bytes(bytes(5000))
    for i in range(12):  # until ntfs-3g has to move attributes out of the file's first record
        name = f"a_stream_with_a_long_name_{i}"
        subprocess.run(["ntfscp", "-f", "-q", "-N", name, image, stream, "f"], check=True, capture_output=True)
    info = subprocess.run(["ntfsinfo", "-f", "-F", "/f", image], check=True, capture_output=True, text=True).stdout
    assert "$ATTRIBUTE_LIST" in info
    run = ntfs(image)
    assert run("put", "\\f", "5000 abcd") == []
    assert run("size", "\\f", "400000") == ["0xC00000BB"]
    expected = bytearray(pattern(300000, 9))
    expected[5000:5002] = b"\xab\xcd"
    assert run("get", "\\f", "0 300000") == [expected.hex()]
    assert run.close() == 0
    assert ntfscat(image, "/f") == expected
    assert_sound(image)


@pytest.mark.parametrize("seed", range(6))
def test_random_work_leaves_what_a_dictionary_would_hold(make_volume: Make, ntfs: Start, seed: int) -> None:
    choice = random.Random(seed)
    image = make_volume(12, choice.choice([512, 1024, 4096, 8192]))
    run = ntfs(image)
    files: dict[str, bytearray] = {}
    folders = [""]
    for step in range(250):
        verb = choice.choices(["create", "mkdir", "fill", "size", "fragment", "reopen"], [20, 4, 45, 20, 6, 3])[0]
        if verb == "create":
            path = f"{choice.choice(folders)}\\f{step}{'x' * choice.randrange(30)}"
            assert run("create", path) == []
            files[path] = bytearray()
        elif verb == "mkdir":
            path = f"{choice.choice(folders)}\\d{step}"
            assert run("mkdir", path) == []
            folders.append(path)
        elif verb == "fragment":
            run("fragment", str(choice.choice([0, 0, 1, 3, 16])))
        elif verb == "reopen":
            assert run.close() == 0
            run = ntfs(image)
        elif files:
            path = choice.choice(sorted(files))
            data = files[path]
            length = choice.choice([1, 100, 511, 512, 700, 4096, 5000, 20000, 70000])
            offset = choice.choice([0, len(data), choice.randrange(len(data) + 1), len(data) + choice.randrange(9000)])
            if verb == "size":
                answer = run("size", path, str(offset))
                if not answer:
                    del data[offset:]
                    data.extend(bytes(offset - len(data)))
            else:
                answer = run("fill", path, f"{offset} {length} {step}")
                if not answer:
                    data.extend(bytes(max(0, offset + length - len(data))))
                    data[offset : offset + length] = pattern(length, step)
            assert answer in ([], [FULL])
    assert run.close() == 0
    for path, data in files.items():
        assert ntfscat(image, path.replace("\\", "/")) == data, path
    for folder in folders:
        inside = {p.rpartition("\\")[2] for p in [*files, *folders[1:]] if p.rpartition("\\")[0] == folder}
        listed = {name for name in ntfsls(image, folder.replace("\\", "/") or "/") if not name.startswith("$")}
        assert listed == inside
    assert_sound(image)


def test_a_full_volume_refuses_and_stays_sound(make_volume: Make, ntfs: Start) -> None:
    image = make_volume(4)
    run = ntfs(image)
    made = 0
    while run("create", f"\\f{made}") == [] and run("fill", f"\\f{made}", "0 50000 1") == []:
        made += 1
    small = 0
    while run("create", f"\\s{small}") == [] and small < 5000:
        small += 1
    assert run("free") == ["0"] or small < 5000
    assert run("get", "\\f0", "0 4") == [pattern(4, 1).hex()]
    assert run.close() == 0
    assert_sound(image)


@pytest.mark.parametrize("seed", range(8))
def test_a_crash_at_any_write_loses_nothing_that_was_there(make_volume: Make, ntfs: Start, seed: int) -> None:
    choice = random.Random(seed)
    image = make_volume(12)
    run = ntfs(image)
    run("mkdir", "\\d")
    for i in range(30):
        run("create", f"\\d\\kept{i}")
        run("fill", f"\\d\\kept{i}", f"0 {i * 700} {i}")
    run("crash", str(choice.randrange(1, 400)))
    with contextlib.suppress(EOFError, BrokenPipeError):
        for step in range(400):
            run("create", f"\\d\\new{step}{'y' * choice.randrange(60)}")
            run("fill", f"\\d\\new{step}...".rstrip("."), f"0 {choice.randrange(9000)} {step}")
            run("size", f"\\d\\kept{choice.randrange(30)}", "100000")
    assert run.close() == 3
    subprocess.run(["ntfsfix", "-n", image], check=True, capture_output=True)
    assert {f"kept{i}" for i in range(30)} <= ntfsls(image, "/d")
    again = ntfs(image)
    for i in range(30):
        expected = pattern(i * 700, i)
        assert ntfscat(image, f"/d/kept{i}")[: i * 700] == expected
        assert not i or again("get", f"\\d\\kept{i}", f"0 {i * 700}") == [expected.hex()]
    assert again("create", "\\d\\after") == []
    assert again.close() == 0


@pytest.mark.parametrize("seed", range(25))
def test_a_damaged_volume_is_refused_not_believed(make_volume: Make, ntfs: Start, seed: int) -> None:
    choice = random.Random(seed)
    image = make_volume(4)
    run = ntfs(image)
    run("mkdir", "\\d")
    for i in range(60):
        run("create", f"\\d\\file{i}")
    run("fill", "\\d\\file3", "0 30000 3")
    assert run.close() == 0
    data = bytearray(image.read_bytes())
    places = [0] + [m.start() for m in re.finditer(rb"FILE0\0|INDX", data)]
    for _ in range(choice.choice([1, 3, 20])):
        place = choice.choice(places) + choice.randrange(500)
        data[place] = choice.choice([0, 1, 0x7F, 0x80, 0xFF, data[place] ^ 1 << choice.randrange(8)])
    image.write_bytes(data)
    run = ntfs(image)
    with contextlib.suppress(EOFError, BrokenPipeError):
        run("ls", "\\d")
        for i in range(0, 60, 7):
            run("get", f"\\d\\file{i}", "0 4096")
            run("fill", f"\\d\\file{i}", "0 9000 1")
            run("create", f"\\d\\new{i}")
    assert run.close() in (0, 1)
