"""Every state of a page, by every way, in every kernel at hand, swizzled in every way: found as it was built."""

from __future__ import annotations

import pytest
from scenes import every_scene, scene

from builder import PAGE
from coldframe.errors import UnreadableMemoryError
from coldframe.paging import AddressSpace

SCENES = every_scene()


@pytest.mark.parametrize(("kernel", "page_format", "variant"), SCENES, ids=lambda value: value.replace(" ", "-"))
def test_every_state_is_found_as_it_was_built(kernel, page_format, variant):
    built, resolver = scene(kernel, page_format, variant)
    wrong = []
    for case in built.cases:
        address = case.address + 0x358
        page = resolver.resolve(case.dtb, address, built.vads)
        truth = {
            "state": case.state,
            "via": case.via,
            "physical": None if case.physical is None else case.physical + 0x358,
            "pagefile": case.pagefile,
            "subsection": case.subsection,
            "readable": case.content is not None,
        }
        found = {name: getattr(page, name) for name in truth}
        space = AddressSpace(resolver, case.dtb, built.vads)
        try:
            content = space.read(case.address, PAGE)
        except UnreadableMemoryError:
            content = None
        if (
            found != truth
            or content != case.content
            or case.says not in page.reason
            or bool(page.reason) == page.readable
        ):
            wrong.append((case.name, truth, found, page.reason, [step.says for step in page.steps]))
        assert resolver.translate(case.dtb, address, built.vads) == page.physical
    assert not wrong, wrong[:3]
    assert len(built.cases) > 250
