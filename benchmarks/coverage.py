"""Which pages each tool reads: coldframe, volatility3 with its own layer and with coldframe's, and MemProcFS.

First on one dump of minint, where the guest itself told the SHA-256 of each page: for each state and way, how many
pages each tool reads right, reads wrong (other bytes, or zeros that are not there), or says that it cannot read. Then
on images built from the types of real kernels: which states each of two translations finds, the one of volatility3's
Windows layer and coldframe's, on how many kernels.

Run: `.venv/bin/python benchmarks/coverage.py [--layout 19041] [--only minint|kernels]`
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from coldframe.minint import TruthPage, start

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from outside.kernels import Outcome, on_kernels
from outside.readers import (
    Answers,
    Key,
    by_coldframe,
    by_memprocfs,
    by_volatility,
    isf_folder,
    pages_with_content,
)

STATES = ("valid", "transition", "demand-zero", "compressed", "pagefile", "subsection")


def on_minint(layout: str, folder: Path) -> tuple[dict[Key, TruthPage], dict[str, Answers]]:
    """The pages of a minint and what each tool reads of them."""
    image, disk = folder / "minint.elf", folder / "minint.qcow2"
    with start(layout=layout, vcpus=2) as machine:
        truth = machine.write_dump(image, disk=disk)
        symbols = machine.symbols_folder
        pages = pages_with_content(truth.pages)
        isf = isf_folder(folder / "isf", symbols)
        own = by_volatility(folder, image, isf, pages, ours=False)
        ours = by_volatility(folder, image, isf, pages, ours=True)
        version = importlib.metadata.version
        return pages, {
            f"volatility3 {version('volatility3')}": {key: str(own[key]["Read"]) for key in pages},
            f"MemProcFS {version('memprocfs')}": by_memprocfs(image, list(pages)),
            "volatility3 on coldframe": {key: str(ours[key]["Read"]) for key in pages},
            "coldframe": by_coldframe(image, symbols, pages),
            "coldframe --disk": by_coldframe(image, symbols, pages, disk),
        }


def outcome(page: TruthPage, answer: str) -> str:
    """right, wrong or not."""
    return "not" if not answer else "right" if answer == page.sha256 else "wrong"


def print_minint(pages: Mapping[Key, TruthPage], tools: Mapping[str, Answers]) -> None:
    """A table in Markdown: right / wrong / not for each state, way and tool."""
    groups: dict[tuple[str, tuple[str, ...]], list[Key]] = defaultdict(list)
    for key, page in pages.items():
        groups[page.state, tuple(sorted(page.via))].append(key)
    print("| state | via | pages |", " | ".join(tools), "|")
    print("|---|---|---|" + "---|" * len(tools))
    for state, via in sorted(groups, key=lambda group: (STATES.index(group[0]), len(group[1]), group[1])):
        keys = groups[state, via]
        cells = [told(Counter(outcome(pages[key], answers[key]) for key in keys)) for answers in tools.values()]
        print(f"| {state} | {', '.join(via) or 'its PTE'} | {len(keys)} |", " | ".join(cells), "|")
    cells = [told(Counter(outcome(page, answers[key]) for key, page in pages.items())) for answers in tools.values()]
    print(f"| all | | {len(pages)} |", " | ".join(cells), "|")


def told(counted: Counter[str]) -> str:
    """`12`, and what is not right: `12, 3 wrong`; a dash where nothing was read."""
    parts = [str(counted["right"])] if counted["right"] else []
    parts += [f"**{counted['wrong']} wrong**"] if counted["wrong"] else []
    return ", ".join(parts) or "-"


def print_kernels(found: Mapping[tuple[str, str], Mapping[str, Counter[Outcome]]], kernels: int) -> None:
    """A table in Markdown: in how many scenes each tool reads the page right."""
    print(f"{kernels} kernels' types")
    print("| state | via | pages | volatility3's layer | coldframe |")
    print("|---|---|---|---|---|")
    for (state, via), tools in found.items():
        total = sum(tools["coldframe"].values())
        print(f"| {state} | {via or 'its PTE'} | {total} | {told(tools['volatility3'])} | {told(tools['coldframe'])} |")


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", default="19041")
    parser.add_argument("--only", choices=["minint", "kernels"])
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if words.only != "kernels":
            print_minint(*on_minint(words.layout, Path(temporary)))
            print()
        if words.only != "minint":
            print_kernels(*on_kernels(Path(temporary)))


if __name__ == "__main__":
    main()
