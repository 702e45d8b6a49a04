"""What minint's programs wrote is on the NTFS volume, byte for byte, and the volume is sound when the power goes."""

import hashlib
import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from coldframe.minint import start
from guest.test_disk import disk


@pytest.mark.minint
@pytest.mark.parametrize(("layout", "vcpus"), [("19041", 1), ("22000", 2)])
def test_what_notepad_wrote_lies_on_a_sound_volume_after_a_power_cut(layout: str, vcpus: int, tmp_path: Path) -> None:
    with start(layout=layout, vcpus=vcpus, options="PACE=1 STATES=0", directory=tmp_path) as guest:
        written = 1
        while written < 120:
            guest.wait_for("write")
            written += 1
        guest.control("stop")  # QEMU flushes what it caches of the qcow2; the guest is cut off wherever it is
        list(guest.new_events())
        writes = [event for event in guest.events if event["event"] == "write"]
        with disk.open_volume(guest.disk) as image:
            contents: dict[str, dict[int, tuple[int, str]]] = defaultdict(dict)
            for event in writes:
                contents[str(event["file"])][int(event["offset"])] = int(event["length"]), str(event["sha256"])
            for path, pieces in contents.items():
                data = disk.run("ntfscat", "-f", image, path.replace("\\", "/"))
                for offset, (length, digest) in pieces.items():
                    assert hashlib.sha256(data[offset : offset + length]).hexdigest() == digest, f"{path} at {offset}"
            subprocess.run(["ntfsfix", "-n", image], check=True, capture_output=True)
            done = subprocess.run(["ntfsresize", "-f", "-i", "-P", image], check=False, capture_output=True, text=True)
            assert "Accounting clusters" in done.stdout, done.stdout + done.stderr
            failures = re.findall(r"Cluster accounting failed at .*: (.*)", done.stdout)
            assert set(failures) <= {"extra cluster in $Bitmap"}, (
                done.stdout
            )  # those of a write cut off before its record
    assert len(contents) == 3
