"""Several prompts at once: the answers of `answer`, whatever else is in the batch, on one decoder and on shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from command_line import TINY, va_export
from refusals import refused

from va_export.errors import VaExportError
from va_export.proof.tolerances import count_roundings, tolerance_for
from va_export.runtime.anchoring import Anchoring
from va_export.runtime.bundle import Bundle
from va_export.runtime.generation import Generation
from va_export.runtime.processing import Prepared

MOST = 3
OPTIONS = ("--fp32", "--onnx-only", "--no-parity", "--max-batch-size", MOST, "--subspaces", 8)
LIMITS = ("--max-input-len", 512, "--max-kv-cache-capacity", 512)


def export(directory: Path, *model: object) -> Path:
    outcome = va_export("--output", directory, *model, *OPTIONS, *LIMITS)
    assert outcome.code == 0, outcome.stderr
    return directory


@pytest.fixture(scope="session")
def batch_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """internvl2-tiny for three rows, in float32."""
    return export(tmp_path_factory.mktemp("batch") / "bundle", *TINY)


@pytest.fixture(scope="session")
def sharded_batch_bundle(tmp_path_factory: pytest.TempPathFactory, deep_checkpoint: Path) -> Path:
    """Four layers in two shards for three rows, in float32."""
    shards = ("--model", deep_checkpoint, "--decoder-shards", 2)
    return export(tmp_path_factory.mktemp("batch-sharded") / "bundle", *shards)


@pytest.fixture(scope="module", params=["plugin", "native", "shards"])
def bundle(request: pytest.FixtureRequest) -> Iterator[Bundle]:
    """Both attention forms of the decoder in one piece, and its shards."""
    name = "sharded_batch_bundle" if request.param == "shards" else "batch_bundle"
    attention = "native" if request.param == "native" else "plugin"
    with Bundle.open(request.getfixturevalue(name), attention=attention) as opened:
        yield opened


@pytest.fixture(scope="module")
def plain_bundle(batch_bundle: Path) -> Iterator[Bundle]:
    with Bundle.open(batch_bundle) as opened:
        yield opened


def prompts(bundle: Bundle) -> list[Prepared]:
    """Prompts of three lengths: of four frames, of text alone, and of two frames; the longest is not the last."""
    random = np.random.default_rng(0)

    def ask(question: str, n_frames: int) -> Prepared:
        frames = random.integers(0, 256, (n_frames, 40, 60, 3), dtype=np.uint8)
        return bundle.prepare(frames, question)

    text = bundle.processing.prepare_ids(random.integers(0, 250, (1, 30)), {}, max_frames=0)
    made = [ask("What moves in this video, and where?", 4), text, ask("Who?", 2)]
    assert len({prepared.length for prepared in made}) == 3
    return made


def assert_same(bundle: Bundle, together: Generation, alone: Generation) -> None:
    """Equal tokens, logits to what rounding explains."""
    assert together.logits is not None and alone.logits is not None
    np.testing.assert_array_equal(together.tokens, alone.tokens)
    text = bundle.manifest.data.model.text
    roundings = count_roundings("fp32", text.num_layers, text.hidden_size, text.intermediate_size)
    bound = tolerance_for("fp32", roundings, alone.logits, None, None)
    np.testing.assert_allclose(together.logits, alone.logits, atol=bound.atol, rtol=bound.rtol)
    for name in ("visual_tokens", "sharing_score", "labels"):
        np.testing.assert_array_equal(getattr(together, name), getattr(alone, name))


@pytest.mark.parametrize("anchors", [True, False])
def test_a_batch_answers_as_its_prompts_do_alone(bundle: Bundle, anchors: bool) -> None:
    asked, anchoring = prompts(bundle), Anchoring(anchors)
    together = bundle.answer_batch(asked, 6, anchoring, ignore_stop=True, return_logits=True)
    assert len(together) == len(asked)
    for one, prepared in zip(together, asked, strict=True):
        assert one.tokens.shape == (6,)
        assert_same(bundle, one, bundle.answer(prepared, 6, anchoring, ignore_stop=True, return_logits=True))


def test_a_batch_of_one_and_of_equal_prompts(plain_bundle: Bundle) -> None:
    first, *_ = prompts(plain_bundle)
    alone = plain_bundle.answer(first, 4, ignore_stop=True, return_logits=True)
    for count in (1, MOST):
        for one in plain_bundle.answer_batch([first] * count, 4, ignore_stop=True, return_logits=True):
            assert_same(plain_bundle, one, alone)


def test_rows_keep_their_own_positions(plain_bundle: Bundle) -> None:
    """A prompt whose positions have gaps goes on from its own next position, not from its slots nor from another's."""
    first, text, last = prompts(plain_bundle)
    text = replace(text, position_ids=5 * text.position_ids, next_position=5 * text.length + 40)
    together = plain_bundle.answer_batch([first, text, last], 6, ignore_stop=True, return_logits=True)
    for one, prepared in zip(together, (first, text, last), strict=True):
        alone = plain_bundle.answer(prepared, 6, ignore_stop=True, return_logits=True)
        assert_same(plain_bundle, one, alone)


def test_rows_that_stop_early_leave_the_others_alone(plain_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts(plain_bundle)
    free = plain_bundle.answer_batch(asked, 8, ignore_stop=True, return_logits=True)
    # A token that one row says early becomes the stop id; where another says it, that one stops there as well.
    stop = int(free[1].tokens[1])
    with_stop = msgspec.structs.replace(plain_bundle.processing, stop_token_ids=(stop,))
    monkeypatch.setattr(plain_bundle, "processing", with_stop)
    stopped = plain_bundle.answer_batch(asked, 8, return_logits=True)
    for one, whole in zip(stopped, free, strict=True):
        said = whole.tokens.tolist()
        length = said.index(stop) + 1 if stop in said else 8
        assert one.tokens.tolist() == said[:length]
        assert one.logits is not None and whole.logits is not None and len(one.logits) == length
        np.testing.assert_array_equal(one.logits, whole.logits[:length])
    lengths = [len(one.tokens) for one in stopped]
    assert lengths[1] <= 2 < max(lengths)


def too_many(bundle: Bundle) -> list[Prepared]:
    return [prompts(bundle)[1]] * (MOST + 1)


def none(_: Bundle) -> list[Prepared]:
    return []


@pytest.mark.parametrize("given", [too_many, none])
def test_more_prompts_than_rows_are_refused(plain_bundle: Bundle, given: Callable[[Bundle], list[Prepared]]) -> None:
    with pytest.raises(VaExportError) as caught:
        plain_bundle.answer_batch(given(plain_bundle), 2)
    assert caught.value.where == "answer_batch" and "--max-batch-size" in str(caught.value.fix)


def test_one_prompt_beyond_the_limits_refuses_the_batch(plain_bundle: Bundle) -> None:
    long = plain_bundle.processing.prepare_ids(np.zeros((1, 513), np.int64), {}, max_frames=0)
    with refused("generate", 513, 512):
        plain_bundle.answer_batch([prompts(plain_bundle)[1], long], 2)
    nearly = plain_bundle.processing.prepare_ids(np.zeros((1, 510), np.int64), {}, max_frames=0)
    with refused("generate", 510, 3, 512):
        plain_bundle.answer_batch([prompts(plain_bundle)[1], nearly], 3)
