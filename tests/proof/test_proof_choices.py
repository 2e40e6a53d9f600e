"""What an export times where memory is short."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from va_export.export.recipe import ExportOptions, resolve_model
from va_export.proof import run as proof


@pytest.mark.parametrize(("available", "runs"), [(10_000, ["onnxruntime", "torch"]), (1_200, ["onnxruntime"])])
def test_pytorch_is_timed_only_where_its_weights_fit(
    available: int, runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "decoder.onnx.data").write_bytes(bytes(1_000))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    options = ExportOptions(recipe=resolve_model("internvl2-tiny"), output=tmp_path / "b")
    timed, left_out = proof._timed_here(options, tmp_path)
    assert [backend for backend, _ in timed] == runs
    assert len(left_out) == 2 - len(runs)
    assert all("PyTorch is not timed" in reason for reason in left_out)
