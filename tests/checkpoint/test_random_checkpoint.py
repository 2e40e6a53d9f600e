"""Random weights: the same for the same seed in any order, and as spread as an initialised model's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import TINY, va_export

from va_export.checkpoint.random_weights import STANDARD_DEVIATION, RandomCheckpoint
from va_export.models.family import WeightSource


def checkpoint(seed: int = 0, **shapes: tuple[int, ...]) -> RandomCheckpoint:
    return RandomCheckpoint(Path("x"), {}, {name: WeightSource(name, shape) for name, shape in shapes.items()}, seed)


def test_any_part_in_any_order_is_the_same() -> None:
    whole = checkpoint(w=(1000, 700)).tensor("w")  # some blocks and a part of one
    assert whole.dtype == torch.bfloat16
    for start, stop in ((999, 1000), (0, 1), (374, 375), (100, 900), (5, 5)):
        assert torch.equal(checkpoint(w=(1000, 700)).rows("w", start, stop), whole[start:stop])


def test_seeds_and_names_differ_and_repeat() -> None:
    made = {(seed, name): checkpoint(seed, a=(8, 64), b=(8, 64)).tensor(name) for seed in (0, 1) for name in "ab"}
    flat = [tuple(tensor.flatten().tolist()) for tensor in made.values()]
    assert len(set(flat)) == 4
    assert torch.equal(checkpoint(1, b=(8, 64)).tensor("b"), made[1, "b"])


def test_numbers_are_those_of_numpys_bit_stream() -> None:
    """Written down once: they may not change from version to version, or a bundle could not be made again."""
    values = checkpoint(3, w=(2, 4)).tensor("w").view(torch.int16).flatten().tolist()
    assert values == EXPECTED


EXPECTED = [-17219, 15155, -17385, -17344, -17398, -17239, -17362, 15513]


def test_distribution() -> None:
    values = checkpoint(w=(2000, 1000)).tensor("w").to(torch.float64).numpy()
    # Of 2·10⁶ normal numbers: the mean within 5 standard errors, the deviation too, rounding to bfloat16 (2⁻⁹) on top.
    assert abs(values.mean()) < 5 * STANDARD_DEVIATION / np.sqrt(values.size)
    assert abs(values.std() / STANDARD_DEVIATION - 1) < 5 / np.sqrt(2 * values.size) + 2.0**-9
    inside = (np.abs(values) < 2 * STANDARD_DEVIATION).mean()
    assert abs(inside - 0.9545) < 2e-3  # a normal distribution's share within two deviations; bfloat16 moves the edge
    assert np.abs(values).max() < 5 * STANDARD_DEVIATION
    made = checkpoint(**{"norm.weight": (9,), "proj.bias": (9,), "ls1": (9,)})
    assert made.tensor("norm.weight").unique().tolist() == [1.0] == made.tensor("ls1").unique().tolist()
    assert made.tensor("proj.bias").unique().tolist() == [0.0]


@pytest.fixture(scope="module")
def random_bundle(golden_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = tmp_path_factory.mktemp("sizes")
    (sizes / "config.json").write_bytes((golden_checkpoint / "config.json").read_bytes())
    output = tmp_path_factory.mktemp("random") / "b"
    options = ("--subspaces", 8, "--onnx-only", "--latency-iterations", 0, "--weights", "random", "--seed", 5)
    outcome = va_export("--model", sizes, *options, "-o", output)
    assert outcome.code == 0, outcome.stderr
    return output


def test_only_a_configuration_is_needed_and_the_bundle_says_what_it_is(random_bundle: Path) -> None:
    manifest = json.loads((random_bundle / "manifest.json").read_text())
    assert manifest["model"]["weights"] == "random" and "seed 5" in manifest["model"]["source"]
    assert manifest["model"]["checkpoint_files"] == {} and manifest["parity"]["passed"] is True
    assert 'id="random-weights"' in (random_bundle / "report.html").read_text()


@pytest.mark.parametrize(("arguments", "named"), [
    ([*TINY, "--weights", "checkpoint"], "internvl2-tiny"),
    ([*TINY, "--weights", "trained"], "trained"),
])  # fmt: skip
def test_refusals(arguments: list[str], named: str, tmp_path: Path) -> None:
    va_export(*arguments, "-o", tmp_path / "b").refuses("--weights", named)
    assert not list(tmp_path.iterdir())
