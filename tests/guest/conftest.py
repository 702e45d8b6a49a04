"""The NTFS code of minint's kernel, built for the host with sanitizers and driven over a plain image file."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IO = ROOT / "guest" / "kernel" / "io"


class Harness:
    """One run of host_test over one image: a command in, its answer's lines out."""

    def __init__(self, binary: Path, image: Path) -> None:
        self.process = subprocess.Popen([binary, image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, verb: str, path: str = "", rest: str = "") -> list[str]:
        """Returns the answer's lines; an error is its status in hexadecimal, as the only line."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{verb} {path}{'|' + rest if rest else ''}\n")
        self.process.stdin.flush()
        lines = []
        while line := self.process.stdout.readline():
            line = line.rstrip("\n")
            if line == "ok":
                return lines
            if line.startswith("error "):
                return [line[6:]]
            lines.append(line)
        raise EOFError(f"host_test ended with {self.process.wait()}")

    def close(self) -> int:
        """Ends it and returns its exit status: not 0 when a sanitizer found something."""
        assert self.process.stdin and self.process.stdout
        if self.process.poll() is None:
            self.process.stdin.close()
        status = self.process.wait(timeout=30)
        self.process.stdout.close()
        return status


@pytest.fixture(scope="session")
def host_test(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool in ("gcc", "mkntfs", "ntfscat", "ntfsresize"):
        if not shutil.which(tool):
            pytest.skip(f"needs {tool}")
    binary = tmp_path_factory.mktemp("ntfs") / "host_test"
    flags = ["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover"]
    sources = [IO / "host_test.c", *sorted(IO.glob("ntfs_*.c"))]
    subprocess.run(["gcc", *flags, "-o", binary, *sources], check=True)
    return binary


@pytest.fixture
def ntfs(host_test: Path) -> Iterator[Callable[[Path], Harness]]:
    opened: list[Harness] = []

    def start(image: Path) -> Harness:
        opened.append(Harness(host_test, image))
        return opened[-1]

    yield start
    for harness in opened:
        if harness.process.poll() is None:
            harness.close()


@pytest.fixture
def make_volume(tmp_path: Path, host_test: Path) -> Callable[..., Path]:
    def make(megabytes: int = 24, cluster: int = 4096) -> Path:
        image = tmp_path / f"volume{megabytes}-{cluster}.img"
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        subprocess.run(
            ["mkntfs", "-F", "-Q", "-q", "-p", "2048", "-H", "16", "-S", "63", "-s", "512", "-c", str(cluster), image],
            check=True,
            capture_output=True,
        )
        return image

    return make
