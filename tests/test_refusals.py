"""The helper that holds refusals can fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from va_export.checkpoint.hub import HubUnreachable
from va_export.errors import VaExportError

ERROR = VaExportError("file has 15 bytes", where="/a/b.json: limits", fix="copy it")


@pytest.mark.parametrize("where", ["/a/b.json", "/a/b.json: limits", Path("b.json"), Path("/a")])
def test_a_place_is_whole_or_an_end_of_a_path(where: str | Path) -> None:
    with refused(where, "file", 15):
        raise ERROR


@pytest.mark.parametrize(("arguments", "options"), [
    (["/a/b"], {}),
    (["json"], {}),
    (["limits"], {}),
    (["/a/b.json", 5], {}),
    (["/a/b.json", "fil"], {}),
    (["/a/b.json"], {"fix": False}),
    (["/a/b.json"], {"kind": HubUnreachable}),
])  # fmt: skip
def test_what_is_not_said_is_missed(arguments: list[Any], options: dict[str, Any]) -> None:
    with pytest.raises((AssertionError, VaExportError)), refused(*arguments, **options):
        raise ERROR


def test_another_kind_is_not_taken_for_it() -> None:
    with pytest.raises(AssertionError), refused("x", fix=False):
        raise HubUnreachable("it", where="x")
