"""The documentation's pictures are made by the command that it names."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "figures"


def words(path: Path) -> list[str]:
    """The words in a picture, without those with digits: numbers and addresses differ from run to run."""
    texts = [element.text or "" for element in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]
    return [word for text in texts for word in text.split() if not re.search(r"\d|^[a-f]{8,}$", word)]


@pytest.mark.minint
def test_the_pictures_are_drawn_as_they_stand_there(tmp_path):
    subprocess.run([sys.executable, str(FOLDER / "draw.py"), str(tmp_path)], check=True, timeout=200)
    drawn = sorted(path.name for path in tmp_path.glob("*.svg"))
    assert drawn == sorted(path.name for path in FOLDER.glob("*.svg")) == ["census.svg", "map.svg", "path.svg"]
    for name in drawn:
        assert (FOLDER / name).stat().st_size < 200_000
        assert set(words(tmp_path / name)) == set(words(FOLDER / name))
