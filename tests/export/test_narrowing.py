"""What fewer bits lose, counted against every value of the 16-bit formats converted one by one by NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from va_export.export.narrowing import Loss, measure, narrow

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NUMPY = {torch.float32: np.dtype(np.float32), torch.float16: np.dtype(np.float16), torch.bfloat16: BFLOAT16}
SMALLEST_NORMAL = {torch.float16: 2.0**-14, torch.bfloat16: 2.0**-126, torch.float32: 2.0**-126}


def every_value(dtype: torch.dtype) -> torch.Tensor:
    """All 65536 of a 16-bit format; of float32 those at both sides of every bound, and many others."""
    if dtype != torch.float32:
        return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    edges = [
        65504,
        65519.996,
        65520,
        65536,
        3.3895314e38,
        3.3961775e38,
        3.4028235e38,
        *(2.0**e for e in range(-149, 3)),
    ]
    edges += [2.0**-14 - 2.0**-25, 2.0**-126 - 2.0**-134, 1.5 * 2.0**-25, 1.5 * 2.0**-134]
    around = np.array(edges, np.float32)
    with np.errstate(over="ignore"):
        around = np.concatenate([around, np.nextafter(around, np.float32(0)), np.nextafter(around, np.float32(np.inf))])
    patterns = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    return torch.from_numpy(np.concatenate([around, -around, patterns, np.zeros(1, np.float32)]))


def one_by_one(values: torch.Tensor, target: torch.dtype) -> Loss:
    """The definition, from NumPy's conversions of float64."""
    wide = values.to(torch.float64).numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        narrowed = wide.astype(np.float32).astype(NUMPY[target]).astype(np.float64)
    finite = np.isfinite(wide)
    small = finite & (np.abs(narrowed) < SMALLEST_NORMAL[target])
    changes = values.dtype != target and not (target == torch.float32 or values.dtype == torch.float16)
    return Loss(
        elements=len(wide),
        not_finite=int((~finite).sum()),
        overflow=int((finite & ~np.isfinite(narrowed)).sum()),
        to_zero=int((small & (narrowed == 0) & (wide != 0)).sum()),
        to_subnormal=int((small & (narrowed != 0)).sum()) if changes else 0,
        largest=float(np.abs(wide[finite]).max()),
    )


@pytest.mark.parametrize("target", list(NUMPY))
@pytest.mark.parametrize("source", list(NUMPY))
def test_counts_every_value_as_numpy_converts_it(source: torch.dtype, target: torch.dtype) -> None:
    values = every_value(source)
    assert measure(values, target) == one_by_one(values, target)


@pytest.mark.parametrize("target", list(NUMPY))
@pytest.mark.parametrize("source", list(NUMPY))
def test_converts_as_numpy_does(source: torch.dtype, target: torch.dtype) -> None:
    values = every_value(source)
    values = values[torch.isfinite(values)]
    narrowed, _ = narrow(values, target)
    with np.errstate(over="ignore"):
        expected = values.to(torch.float32).numpy().astype(NUMPY[target]).astype(np.float64)
    np.testing.assert_array_equal(narrowed.to(torch.float64).numpy(), expected)


def test_clipping_gives_the_largest_number_and_touches_no_other() -> None:
    values = torch.tensor([1.0, -1e5, 7e4, 65504, -0.5])
    narrowed, loss = narrow(values, torch.float16, clip=True)
    assert narrowed.tolist() == [1.0, -65504, 65504, 65504, -0.5] and loss.overflow == 2
    assert not loss.fits and narrow(values[3:], torch.float16)[1].fits


def test_parts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    values = every_value(torch.bfloat16)
    whole = measure(values, torch.float16)
    assert measure(values[:999], torch.float16) + measure(values[999:], torch.float16) == whole
    monkeypatch.setattr("va_export.export.narrowing._PART", 1000)
    assert measure(values, torch.float16) == whole
    assert measure(values[:0], torch.float16) == Loss()
