"""A prompt in chunks over the KV cache is the prompt in one piece: the official implementation's numbers, wherever the
chunks end, on every form of the decoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused

from va_export.bundle.manifest import MANIFEST_NAME
from va_export.runtime.bundle import Bundle
from va_export.runtime.processing import Prepared
from va_export.runtime.session import Session, chunks

Golden = Mapping[str, np.ndarray[Any, Any]]
# The prompt has 151 tokens, so chunks filled one by one would leave a single token behind 150 and twice 75.
LENGTH, WIDTH = 151, 128
ATOL = 2e-5  # float32: 2⁻²⁴ · some hundred roundings on logits of size 1


@pytest.fixture(scope="module", params=["plugin", "native", "torch"])
def bundle(request: pytest.FixtureRequest, golden_bundle: Callable[[str], Path]) -> Iterator[Bundle]:
    form = {"backend": "torch"} if request.param == "torch" else {"attention": request.param}
    with Bundle.open(golden_bundle("fp32"), **form) as opened:
        yield opened


def limit_chunks(bundle: Bundle, most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the backend want chunks of that length; the lengths that it then gets."""
    seen: list[int] = []
    decode = bundle.backend.decode

    def counted(inputs_embeds: np.ndarray[Any, Any], *others: Any) -> np.ndarray[Any, Any]:
        seen.append(inputs_embeds.shape[1])
        return decode(inputs_embeds, *others)

    monkeypatch.setattr(bundle.backend, "prefill_chunk", lambda _: most)
    monkeypatch.setattr(bundle.backend, "decode", counted)
    return seen


@pytest.mark.parametrize(("most", "count"), [(150, 2), (75, 3), (60, 3), (3, 51)])
def test_the_golden_run_in_chunks(
    bundle: Bundle, golden: Golden, most: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = limit_chunks(bundle, most, monkeypatch)
    found = bundle.generate(
        golden["pixel_values"],
        golden["input_ids"],
        forced_tokens=np.append(golden["tokens"], 0),
        key_log_gain=golden["key_log_gain_official"],
        value_gain=golden["gain_v"],
        return_logits=True,
    )
    prompt, steps = seen[:count], seen[count:]
    assert sum(prompt) == LENGTH and min(prompt) > 1 and max(prompt) <= most and set(steps) == {1}
    np.testing.assert_allclose(found.logits, golden["decode_logits"], rtol=0, atol=ATOL)


def test_a_prompt_behind_what_a_row_holds(bundle: Bundle, golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt as two, the second beginning amid visual tokens: it sees the gains of the first's slots too."""
    limit_chunks(bundle, 30, monkeypatch)
    ids, is_visual = golden["input_ids"], golden["input_ids"] == golden["image_token_id"]
    session = Session.start(bundle.backend, WIDTH, 1, 1, LENGTH + 9, 192)
    visual, gains = golden["visual_tokens"], (golden["key_log_gain_official"], golden["gain_v"])
    logits = np.zeros(0)
    for part in (slice(0, 70), slice(70, LENGTH)):
        positions = np.arange(part.start, part.stop)[None, None]
        prompt = Prepared({}, ids[:, part], is_visual[:, part], is_visual[:, part], positions, part.stop)
        first = int(is_visual[0, : part.start].sum())
        taken = visual[first : first + int(is_visual[0, part].sum())]
        logits = session.prefill(0, prompt, taken, (gains[0][: part.stop], gains[1][: part.stop]))
    rows = [logits, *(session.step(np.array([token])) for token in golden["tokens"])]
    np.testing.assert_allclose(np.concatenate(rows), golden["decode_logits"], rtol=0, atol=ATOL)


def test_a_prompt_longer_than_engines_take_at_once(
    golden_bundle: Callable[[str], Path], golden: Golden, tmp_path: Path
) -> None:
    """Where the rotary embedding does not follow the call's length; golden's does from a position on."""
    prompt = {"input_ids": golden["input_ids"], "pixel_values": golden["pixel_values"], "max_new_tokens": 1}
    narrow = Path(shutil.copytree(golden_bundle("fp32"), tmp_path / "bundle"))
    manifest = json.loads((narrow / MANIFEST_NAME).read_bytes())
    manifest["limits"]["max_input_len"] = 100
    (narrow / MANIFEST_NAME).write_text(json.dumps(manifest), encoding="utf-8")
    with Bundle.open(narrow) as opened:
        whole_from = opened.manifest.data.model.text.whole_from
        assert whole_from is not None and whole_from > LENGTH
        assert opened.generate(**prompt).tokens.tolist() == [golden["tokens"][0]]
        prepared = opened.processing.prepare_ids(golden["input_ids"], {"pixel_values": golden["pixel_values"]}, 8)
        prepared.position_ids[..., -1] = whole_from
        with refused("generate", LENGTH, 100):
            opened.answer(prepared, 1)


def test_chunks_are_as_few_and_as_even_as_can_be() -> None:
    for length in range(1, 200):
        for most in range(3, 60):
            found = list(chunks(length, most))
            sizes = [chunk.stop - chunk.start for chunk in found]
            assert [chunk.start for chunk in found] == [0, *(chunk.stop for chunk in found[:-1])]
            assert sum(sizes) == length and max(sizes) <= most and max(sizes) - min(sizes) <= 1
            assert len(sizes) == -(-length // most)
            assert length == 1 or min(sizes) > 1


def test_a_session_prefills_at_once_what_reaches_the_position(
    golden_bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Bundle.open(golden_bundle("fp32")) as opened:
        seen = limit_chunks(opened, 8, monkeypatch)
        prompt = opened.processing.prepare_ids(np.arange(20)[None], {}, 0)
        plain = np.zeros(20, np.float32), np.ones(20, np.float32)
        for whole_from, expected in ((20, [6, 7, 7]), (19, [20])):
            session = Session.start(opened.backend, WIDTH, 1, 1, 32, 64, whole_from)
            session.prefill(0, prompt, None, plain)
            assert seen == expected
            seen.clear()
