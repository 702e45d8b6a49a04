from __future__ import annotations

from pathlib import Path

import pytest

from symbols import programs

SHARED = Path(__file__).parents[2].parent / "shared" / "symbols"


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for every test, and no symbol path from outside."""
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.delenv("_NT_SYMBOL_PATH", raising=False)
    return home / "coldframe"


@pytest.fixture(scope="session")
def pdbs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`kernel-x86_64`, `kernel-i686` (C), `classes-x86_64`, `classes-i686` (C++)."""
    if missing := programs.missing():
        pytest.skip(f"{', '.join(missing)} not installed")
    folder = tmp_path_factory.mktemp("programs")
    made = {}
    for target in programs.TARGETS:
        made[f"kernel-{target}"] = programs.build(folder, "kernel", programs.KERNEL_C, target)
        made[f"classes-{target}"] = programs.build(folder, "classespp", programs.CLASSES_CPP, target)
    return made


@pytest.fixture(scope="session")
def ntdll() -> Path:
    """ntdll's PDB as Microsoft's linker wrote it."""
    path = SHARED / "ntdll.pdb" / "ntdll.pdb"
    if not path.is_file():
        pytest.skip("needs ../shared/symbols/ntdll.pdb/ntdll.pdb, which is not here")
    return path


@pytest.fixture(scope="session")
def kernels() -> list[Path]:
    """ISF files of real kernels, the smallest (of Windows 7) first."""
    found = sorted((SHARED / "ntkrnlmp.pdb").glob("*.json.xz"), key=lambda path: path.stat().st_size)
    if not found:
        pytest.skip("needs ../shared/symbols/ntkrnlmp.pdb/*.json.xz, which are not here")
    return found
