"""The reference of the Python interface is what the docstrings say now; all that is public has one."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "make_api.py"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_api", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_up_to_date(maker: ModuleType) -> None:
    assert maker.stale() == [], "run docs/make_api.py"


def test_a_page_that_says_something_else_is_found(
    maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in maker.pages().items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(maker, "DOCS", tmp_path)
    assert maker.stale() == []
    (tmp_path / "api-debug.md").write_text("old")
    (tmp_path / "api-gone.md").write_text("a room that is no more")
    (tmp_path / "api-trace.md").unlink()
    assert maker.stale() == ["api-debug.md", "api-gone.md", "api-trace.md"]


def test_everything_public_says_what_it_is(maker: ModuleType) -> None:
    silent = []
    for room in maker.ROOMS:
        for name, value in maker.public(importlib.import_module(room)):
            if not (inspect.isclass(value) or inspect.isfunction(value)):
                continue
            if not value.__doc__:
                silent.append(f"{room}.{name}")
            for member, held in vars(value).items() if inspect.isclass(value) else ():
                told = inspect.isfunction(held) or isinstance(held, property)
                if told and not member.startswith("_") and not inspect.getdoc(getattr(value, member)):
                    silent.append(f"{room}.{name}.{member}")
    assert silent == []
