"""The table of families finds a family by a checkpoint's architecture and names what it supports otherwise."""

from __future__ import annotations

import pytest
import torch
from refusals import refused

from va_export.errors import VaExportError
from va_export.models import FAMILIES, family_for, family_named
from va_export.models.family import RowBlocks, WeightSource


def test_finds_each_family_by_every_architecture_and_by_name() -> None:
    assert FAMILIES
    for family in FAMILIES:
        assert family.architectures
        for architecture in family.architectures:
            assert family_for({"architectures": [architecture]}) is family
        assert family_named(family.name) is family
    names = [name for family in FAMILIES for name in family.architectures]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("config", "named"),
    [({"architectures": ["FooForCausalLM"]}, "FooForCausalLM"), ({"model_type": "foo"}, "'foo'"), ({}, "None")],
)
def test_unsupported_architecture_lists_the_supported_ones(config: dict[str, object], named: str) -> None:
    with pytest.raises(VaExportError) as caught:
        family_for(config)
    assert named in caught.value.what
    assert all(name in str(caught.value.fix) for family in FAMILIES for name in family.architectures)
    with refused("family", "foo"):
        family_named("foo")


def test_row_blocks_take_the_same_blocks_of_every_group() -> None:
    # Two groups of three blocks of two rows; the middle block of each.
    source = WeightSource("packed", (12, 5), RowBlocks(2, 3, 2, 1, 2))
    packed = torch.arange(60).reshape(12, 5)
    assert source.shape == (4, 5)
    assert torch.equal(source.view(packed), packed[[2, 3, 8, 9]])
    whole = WeightSource("whole", (12, 5))
    assert whole.shape == (12, 5)
    assert whole.view(packed) is packed
