#!/usr/bin/env python3
"""Writes docs/api.md and docs/api-*.md, the reference of the public Python interface, out of the docstrings.

docs/make_api.py            writes the pages
docs/make_api.py --check    says which are not up to date

Public is what a room names in `__all__`, and of a class what has no underscore before it. Run it with the Python of
`.venv`; `tests/docs/test_api.py` holds the pages against what it would write.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).resolve().parent
ROOMS = (
    "coldframe",
    "coldframe.debug",
    "coldframe.trace",
    "coldframe.gdbserver",
    "coldframe.windows",
    "coldframe.windows.vad",
    "coldframe.windows.handle",
    "coldframe.windows.section",
    "coldframe.windows.typetree",
    "coldframe.memory",
    "coldframe.memoryfile",
    "coldframe.paging",
    "coldframe.symbols",
    "coldframe.images",
    "coldframe.disk",
    "coldframe.resident",
    "coldframe.qemu",
    "coldframe.capabilities",
    "coldframe.errors",
)
_TOLD = ("__getitem__", "__setitem__", "__contains__")
"""Methods of Python's own that a class's user writes as an operator."""
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def pages() -> dict[str, str]:
    """Every page: its file's name and its text."""
    modules = [importlib.import_module(name) for name in ROOMS]
    written = {page_of(module): _page(module) for module in modules}
    return {"api.md": _index(modules), **written}


def page_of(module: ModuleType) -> str:
    """The name of a room's page."""
    return f"api-{module.__name__.removeprefix('coldframe.').replace('.', '-')}.md"


def public(module: ModuleType) -> list[tuple[str, object]]:
    """The public names of a room and what they stand for, in order."""
    if hasattr(module, "__all__"):
        return [(name, getattr(module, name)) for name in module.__all__]
    own = (pair for pair in vars(module).items() if getattr(pair[1], "__module__", None) == module.__name__)
    return [(name, value) for name, value in own if not name.startswith("_") and callable(value)]


def _index(modules: list[ModuleType]) -> str:
    lines = [
        "# The Python interface",
        "",
        "What each room of coldframe offers, from its docstrings (`docs/make_api.py` writes these pages). Begin with",
        "[coldframe](api-coldframe.md), which opens guests, and [coldframe.windows](api-windows.md), which tells what",
        "is in them; [coldframe.debug](api-debug.md) has what running ones can do besides.",
        "",
        "| room | holds | names |",
        "|---|---|---|",
    ]
    for module in modules:
        names = ", ".join(
            f"[{name}]({page_of(module)}#{name.lower()})" for name, value in public(module) if _is_described(value)
        )
        first = inspect.getdoc(module) or ""
        says = first.partition("\n\n")[0].replace("\n", " ").rstrip(".")
        lines.append(f"| [{module.__name__}]({page_of(module)}) | {says} | {names} |")
    return "\n".join(lines) + "\n"


def _page(module: ModuleType) -> str:
    lines = [f"# {module.__name__}", "", *_text(inspect.getdoc(module) or "")]
    for name, value in public(module):
        if inspect.isclass(value):
            lines += _class(name, value)
        elif inspect.isfunction(value):
            lines += [f"## {name}", "", *_signature(name, _tree(value)), *_text(inspect.getdoc(value) or "")]
    values = [name for name, value in public(module) if not _is_described(value)]
    if values:
        lines += ["## Values and types", "", ", ".join(f"`{name}`" for name in values), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).rstrip() + "\n")


def _is_described(value: object) -> bool:
    return inspect.isclass(value) or inspect.isfunction(value)


def _class(name: str, kind: type) -> Iterator[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    bases = ", ".join(ast.unparse(base) for base in tree.bases)
    yield from (f"## {name}", "", f"`class {name}{f'({bases})' if bases else ''}`", "")
    yield from _text(inspect.getdoc(kind) or "")
    fields = list(_fields(tree))
    if fields:
        yield from (*fields, "")
    for node in tree.body:
        if isinstance(node, _Function) and _is_told(node):
            yield from _method(node)
    yield ""


def _is_told(node: _Function) -> bool:
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    if decorators & {"overload", "setter"}:
        return False
    if node.name == "__init__":
        return bool(ast.get_docstring(node)) or len(node.args.args) + len(node.args.kwonlyargs) > 1
    return not node.name.startswith("_") or node.name in _TOLD


def _method(node: _Function) -> Iterator[str]:
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    said = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    more = (ast.get_docstring(node) or "").partition("\n\n")[2]
    if decorators & {"property", "cached_property"}:
        head = f"`{node.name}{returns}`"
    else:
        head = f"`{node.name}{_arguments(node)}{returns}`"
    yield f"- {head}" + (f": {said}" if said else "")
    for line in ("", *_text(more)) if more else ():
        yield f"  {line}" if line else ""


def _fields(tree: ast.ClassDef) -> Iterator[str]:
    """The fields of a data class or the names of an enum, with what the docstring below each says."""
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        said = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            said = ": " + " ".join(after.value.value.split())
        if isinstance(node, ast.AnnAssign | ast.Assign) and not ast.unparse(node).startswith("_"):
            yield f"- `{ast.unparse(node)}`{said}"


def _tree(function: object) -> _Function:
    assert inspect.isfunction(function)
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, _Function)
    return tree


def _signature(name: str, tree: _Function) -> Iterator[str]:
    returns = f" -> {ast.unparse(tree.returns)}" if tree.returns is not None else ""
    yield from ("```python", f"{name}{_arguments(tree)}{returns}", "```", "")


def _arguments(tree: _Function) -> str:
    text = ast.unparse(tree.args)
    for own in ("self", "cls"):
        text = text.removeprefix(f"{own}, ") if text != own else ""
    return f"({text})"


def _text(text: str) -> Iterator[str]:
    """A docstring; from the first line of a program on it is one."""
    prose, mark, program = text, "", ""
    for start in ("\n\nimport ", "\n\nwith "):
        if start in text:
            prose, mark, program = text.partition(start)
            break
    if prose:
        yield from (*prose.splitlines(), "")
    if program:
        yield from ("```python", *(mark.strip() + " " + program).splitlines(), "```", "")


def stale() -> list[str]:
    """The pages that are not as they would be written, also those that would not be written."""
    wanted = pages()
    there = {path.name: path.read_text() for path in DOCS.glob("api*.md")}
    return sorted(name for name in {*wanted, *there} if wanted.get(name) != there.get(name))


def main() -> int:
    """Write the pages, or check them."""
    if "--check" in sys.argv[1:]:
        for name in stale():
            print(f"docs/{name} is not up to date: run docs/make_api.py")
        return bool(stale())
    wanted = pages()
    for path in DOCS.glob("api*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (DOCS / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
