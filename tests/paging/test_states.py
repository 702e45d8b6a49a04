"""Every state of a page, by every way, in every kernel, swizzled every way: found as built, singly and in bulk."""

from __future__ import annotations

import pytest

from paging.scenes import bulk_differences, differences, every_scene, scene

SCENES = every_scene()


@pytest.mark.parametrize(("kernel", "page_format", "variant"), SCENES, ids=lambda value: value.replace(" ", "-"))
def test_every_state_is_found_as_it_was_built(kernel, page_format, variant):
    built, resolver = scene(kernel, page_format, variant)
    wrong = differences(built, resolver) + bulk_differences(built, resolver)
    assert not wrong, wrong[:3]
    assert len(built.cases) > 250
