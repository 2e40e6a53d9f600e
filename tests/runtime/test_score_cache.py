"""Cached scores: found again, never mistaken, bounded, and safe in the hands of several processes."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from va_export.runtime import scoring
from va_export.runtime.score_cache import ScoreCache, Scored
from va_export.runtime.scoring import score_visual_tokens
from va_export.settings import ScoreSettings

TOKENS = np.random.default_rng(0).standard_normal((24, 8)).astype(np.float32)
SETTINGS = ScoreSettings(n_subspaces=3)
SCORE = Scored(np.linspace(0, 1, 24, dtype=np.float32), np.arange(24) % 3, 17)


@pytest.fixture
def cache(tmp_path: Path) -> ScoreCache:
    return ScoreCache(tmp_path / "scores", max_entries=4)


def test_a_video_is_scored_once(cache: ScoreCache, monkeypatch: pytest.MonkeyPatch) -> None:
    first = score_visual_tokens(TOKENS, SETTINGS, cache=cache)
    monkeypatch.setattr(scoring, "subspace_score", None)  # calling it would fail
    again = score_visual_tokens(np.asfortranarray(TOKENS), SETTINGS, cache=cache)
    np.testing.assert_array_equal(again.sharing_score, first.sharing_score)
    np.testing.assert_array_equal(again.labels, first.labels)
    assert again.iterations == first.iterations
    with pytest.raises(TypeError):
        score_visual_tokens(TOKENS, SETTINGS)  # without a cache nothing is remembered


@pytest.mark.filterwarnings("ignore:subspace_score stopped")
def test_a_score_that_did_not_converge_is_computed_and_warned_of_again(cache: ScoreCache) -> None:
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="stopped after 60 iterations"):
            score_visual_tokens(TOKENS, structs.replace(SETTINGS, max_iter=60), cache=cache)
    assert not cache.directory.exists()


def test_a_key_is_of_everything_that_decides_the_score(cache: ScoreCache) -> None:
    changed = TOKENS.copy()
    changed[5, 3] = np.nextafter(changed[5, 3], 9)
    variants = [TOKENS, changed, TOKENS.astype(np.float64), TOKENS.reshape(12, 16), TOKENS[:12]]
    keys = {cache.key(tokens, structs.asdict(SETTINGS)) for tokens in variants}
    keys |= {
        cache.key(TOKENS, structs.asdict(structs.replace(SETTINGS, **{name: value})))
        for name, value in {"n_subspaces": 4, "pca_rank": 5, "rho": 301.0, "eps": 1e-4, "max_iter": 9}.items()
    }
    assert len(keys) == 10
    assert cache.key(TOKENS.copy(), structs.asdict(SETTINGS)) in keys


def test_a_damaged_entry_is_absent(cache: ScoreCache) -> None:
    cache.store("key", SCORE)
    (path,) = cache.directory.iterdir()
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (b"", whole[:middle], whole[:120] + b"x" * 40 + whole[160:], b"PK\x03\x04", b"\x80\x04pickle"):
        path.write_bytes(damaged)
        assert cache.load("key", 24) is None
    path.write_bytes(whole)
    assert cache.load("key", 24) is not None
    assert cache.load("key", 25) is None, "a score of another number of tokens"
    for wrong in (replace(SCORE, sharing_score=np.full(24, np.nan, np.float32)), replace(SCORE, labels=np.zeros(24))):
        cache.store("key", wrong)
        assert cache.load("key", 24) is None


def test_an_entry_with_a_pickle_is_not_opened(cache: ScoreCache) -> None:
    cache.store("key", SCORE)
    (path,) = cache.directory.iterdir()
    with path.open("wb") as file:
        np.savez(file, sharing_score=np.array([{}] * 24), labels=SCORE.labels, iterations=np.int64(1))
    assert cache.load("key", 24) is None


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00\x05\x00((((("])
def test_an_entry_whose_member_is_no_array(cache: ScoreCache, content: bytes) -> None:
    """NumPy gives the bytes of such a member as they are."""
    cache.store("key", SCORE)
    (path,) = cache.directory.iterdir()
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in {**members, "sharing_score.npy": content}.items():
            archive.writestr(name, member)
    assert cache.load("key", 24) is None


@pytest.mark.parametrize("iterations", [np.float64("inf"), np.array([1, 2]), np.array("x")])
def test_an_entry_with_other_iterations(cache: ScoreCache, iterations: object) -> None:
    cache.store("key", SCORE)
    (path,) = cache.directory.iterdir()
    with path.open("wb") as file:
        np.savez(file, sharing_score=SCORE.sharing_score, labels=SCORE.labels, iterations=iterations)
    assert cache.load("key", 24) is None


def test_the_least_recently_used_go(cache: ScoreCache) -> None:
    for number in range(4):
        cache.store(f"key{number}", SCORE)
        path = cache.directory / f"key{number}.score.npz"
        os.utime(path, (1_000_000 + number, 1_000_000 + number))
    assert cache.load("key0", 24) is not None  # now the latest
    cache.store("key4", SCORE)
    assert {path.name.split(".")[0] for path in cache.directory.iterdir()} == {"key0", "key2", "key3", "key4"}


def test_what_cannot_be_removed_costs_no_score(cache: ScoreCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another user's file in a folder that only owners may remove from."""

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(f"{path} is another's")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        for number in range(6):
            cache.store(f"{number}", SCORE)
    assert all(cache.load(f"{number}", 24) is not None for number in range(6))


def test_what_a_killed_process_left_goes(cache: ScoreCache) -> None:
    cache.store("key", SCORE)
    left, fresh = cache.directory / "a.score.tmp", cache.directory / "b.score.tmp"
    left.touch()
    fresh.touch()
    os.utime(left, (0, 0))
    cache.store("key", SCORE)
    assert not left.exists()
    assert fresh.exists()


def test_a_directory_that_cannot_be_made_costs_only_the_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = ScoreCache(tmp_path / "file" / "below")
    assert score_visual_tokens(TOKENS, SETTINGS, cache=cache).iterations > 0


WRITER = """
import sys, numpy as np
from pathlib import Path
from va_export.runtime.score_cache import ScoreCache, Scored
cache = ScoreCache(Path(sys.argv[1]), max_entries=3)
own = int(sys.argv[2])
for i in range(150):
    n = 2000 + i % 5
    cache.store(f"key{i % 5}", Scored(np.full(n, i % 5 / 5, np.float32), np.full(n, own), i))
    # The key just stored: the other process may have replaced it meanwhile, and seldom has dropped it. Any other key
    # is there or not by how the two processes happen to run.
    found = cache.load(f"key{i % 5}", n)
    if found is not None:
        assert (found.sharing_score == np.float32(i % 5 / 5)).all()
        assert (found.labels == found.labels[0]).all(), "half of one process's and half of the other's"
        print("hit")
"""


def test_two_processes_share_a_directory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "scores")]
    writers = [
        subprocess.Popen([*command, str(own)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for own in (1, 2)
    ]
    for writer in writers:
        out, err = writer.communicate(timeout=60)
        assert writer.returncode == 0, err
        assert out.count("hit") > 10
    left = list((tmp_path / "scores").iterdir())
    assert all(path.name.endswith(".score.npz") for path in left)
    assert len(left) <= 4  # both may be over the bound by the other's last
