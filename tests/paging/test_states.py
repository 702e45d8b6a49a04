"""Every state of a page, by every way, in every kernel at hand, swizzled in every way: found as it was built."""

from __future__ import annotations

import pytest
from scenes import differences, every_scene, scene

SCENES = every_scene()


@pytest.mark.parametrize(("kernel", "page_format", "variant"), SCENES, ids=lambda value: value.replace(" ", "-"))
def test_every_state_is_found_as_it_was_built(kernel, page_format, variant):
    built, resolver = scene(kernel, page_format, variant)
    wrong = differences(built, resolver)
    assert not wrong, wrong[:3]
    assert len(built.cases) > 250
