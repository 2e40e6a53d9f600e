"""A clip is watched once: questions get the answers that they have alone, conversations go on from what was said."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asked_twice import asked_twice
from msgspec.structs import replace
from refusals import refused
from resealing import rewrite

from va_export.bundle.manifest import read_manifest
from va_export.runtime.anchoring import Anchoring
from va_export.runtime.bundle import Bundle
from va_export.runtime.clip import Clip
from va_export.runtime.decoding import Row, Wish
from va_export.runtime.processing.fixed_frames import FixedFrames
from va_export.runtime.stage_clock import StageClock
from va_export.runtime.token_choice import GREEDY, Sampling, TokenChoice

QUESTIONS = ("What moves?", "And where does it go, then?")
ATOL = 2e-5  # float32: 2⁻²⁴ · some hundred roundings on logits of size 1


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 60, 80, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with Bundle.open(tiny_bundle) as opened:
        yield opened


@pytest.fixture
def watched(bundle: Bundle, frames: np.ndarray) -> Clip:
    return bundle.watch(frames)


def alone(bundle: Bundle, frames: np.ndarray, question: str, n_new: int) -> list[int]:
    return bundle.answer(bundle.prepare(frames, question), n_new).tokens.tolist()


@pytest.mark.parametrize("form", ["plugin", "native", "torch"])
def test_a_kept_prefix_is_the_official_run(
    form: str, golden_bundle: Callable[[str], Path], golden: Mapping[str, np.ndarray]
) -> None:
    how = {"backend": "torch"} if form == "torch" else {"attention": form}
    gains, fed = (golden["key_log_gain_official"], golden["gain_v"]), np.append(golden["tokens"], 0)
    with Bundle.open(golden_bundle("fp32"), **how) as opened:
        again = asked_twice(opened, golden["input_ids"], {"pixel_values": golden["pixel_values"]}, gains, fed)
    np.testing.assert_allclose(again, golden["decode_logits"], rtol=0, atol=ATOL)


def test_questions_have_the_answers_that_they_have_alone(bundle: Bundle, frames: np.ndarray, watched: Clip) -> None:
    assert set(watched.timings) == {"vision", "score"} and watched.sharing_score is not None
    for number, question in enumerate((*QUESTIONS, QUESTIONS[0])):
        answer = watched.ask(question, 8)
        pieces = list(answer)
        assert answer.tokens == alone(bundle, frames, question, 8)
        assert "".join(pieces) == answer.text == bundle.text_tokenizer().decode(answer.tokens)
        assert answer.finish_reason == "length" and set(answer.timings) >= {"prefill", "decode", "total"}
        assert (answer.reused_tokens > 250) == (number > 0)


def test_shards_keep_a_prefix_each(sharded_bundle: Path, frames: np.ndarray) -> None:
    with Bundle.open(sharded_bundle) as opened:
        clip = opened.watch(frames)
        for question in QUESTIONS:
            answer = clip.ask(question, 4)
            answer.read()
            assert answer.tokens == alone(opened, frames, question, 4)
        assert answer.reused_tokens > 250


def test_a_file_is_watched_as_va_run_reads_it(bundle: Bundle, clip: Path) -> None:
    from va_export.runtime.video import read_frames

    answer = bundle.watch(clip, frames=3).ask(QUESTIONS[0], 4)
    read = read_frames(clip, 3, bundle.processing.frame_sampling)
    answer.read()
    assert answer.tokens == alone(bundle, read.pixels, QUESTIONS[0], 4)


def test_a_rate_takes_as_many_as_the_bundle_takes_and_damage_is_told(bundle: Bundle, clip: Path) -> None:
    watched = bundle.watch(clip, sampling="fps=1")
    assert watched.file is not None and len(watched.file.indices) == 10 > bundle.default_frames
    assert watched.file.reading.notes == () and watched.file.reading.sampling == "fps=1"


def test_without_anchors_and_with_other_gains_nothing_is_shared(bundle: Bundle, frames: np.ndarray) -> None:
    tokens = []
    for anchoring in (Anchoring(), Anchoring(enabled=False), Anchoring(alpha_k=1.0)):
        answer = bundle.watch(frames, anchoring=anchoring).ask("Is it so?", 6)
        answer.read()
        prepared = bundle.prepare(frames, "Is it so?")
        assert answer.tokens == bundle.answer(prepared, 6, anchoring).tokens.tolist()
        tokens.append(answer.tokens)
    assert len({tuple(each) for each in tokens}) == 3


# Conversations


def test_a_conversation_goes_on_from_its_own_keys_and_values(bundle: Bundle, frames: np.ndarray, watched: Clip) -> None:
    """By hand: the first prompt, its answer step by step, the second turn behind them with the gains of all slots."""
    talk = watched.converse()
    first = talk.ask(QUESTIONS[0], 6)
    first.read()
    second = talk.ask(QUESTIONS[1], 6)
    second.read()
    assert talk.turns == [(QUESTIONS[0], first.text), (QUESTIONS[1], second.text)]
    prepared = bundle.prepare(frames, QUESTIONS[0])
    assert second.reused_tokens == prepared.length + 5

    encoded = watched.encoded(prepared)
    session = bundle.decoding.session(1, prepared.length + 100)
    logits = session.prefill(0, prepared, encoded.visual, encoded.gains)
    for token in first.tokens[:-1]:
        logits = session.step(np.array([token]))
    turn = f"<|im_end|><|im_start|>user\n{QUESTIONS[1]}<|im_end|><|im_start|>assistant\n"
    rest = [first.tokens[-1], *bundle.text_tokenizer().encode(turn)]
    whole = prepared.then([*first.tokens[:-1], *rest])
    logits = session.prefill(0, whole.after(second.reused_tokens), None, watched.encoded(whole).gains)
    tokens = []
    for _ in range(6):
        tokens.append(int(logits[0].argmax()))
        logits = session.step(np.array(tokens[-1:]))
    assert second.tokens == tokens


def test_what_an_answer_does_not_show_is_no_part_of_the_conversation(bundle: Bundle, watched: Clip) -> None:
    plain = watched.ask(QUESTIONS[0], 8)
    plain.read()
    shown = bundle.text_tokenizer().decode(plain.tokens[:3])
    stop = bundle.text_tokenizer().decode(plain.tokens[:6]).removeprefix(shown)
    talk = watched.converse()
    answer = talk.ask(QUESTIONS[0], 8, stop=[stop])
    answer.read()
    assert answer.finish_reason == "stop" and answer.shown_tokens == plain.tokens[:3]
    second = talk.ask(QUESTIONS[1], 3)
    second.read()
    assert second.reused_tokens == watched.prepare(QUESTIONS[0]).length + 3
    cut = watched.converse()
    cut.ask(QUESTIONS[0], 3).read()  # the same, by its length
    other = cut.ask(QUESTIONS[1], 3)
    other.read()
    assert other.tokens == second.tokens


def test_an_answer_closed_before_it_began_is_no_turn_and_loses_nothing(watched: Clip) -> None:
    talk, other = watched.converse(), watched.converse()
    for each in (talk, other):
        each.ask(QUESTIONS[0], 4).read()
    talk.ask("Never answered?").close()
    answers = [each.ask(QUESTIONS[1], 4) for each in (talk, other)]
    assert answers[0].read() == answers[1].read() and answers[0].reused_tokens == answers[1].reused_tokens > 280
    assert talk.turns == other.turns and len(talk.turns) == 2


def test_what_was_held_back_when_an_answer_was_closed_is_no_part_of_it(bundle: Bundle, watched: Clip) -> None:
    whole = watched.ask(QUESTIONS[0], 8)
    pieces = list(whole)
    talk = watched.converse()
    answer = talk.ask(QUESTIONS[0], 8, stop=[pieces[1] + "never"])  # so that the second piece waits for more
    assert next(answer) == pieces[0]
    answer._advance()
    answer.close()
    assert len(answer.tokens) > len(answer.shown_tokens)
    assert bundle.text_tokenizer().decode(answer.shown_tokens) == answer.text == pieces[0] == talk.turns[0][1]


def test_a_later_question_has_no_placeholders(bundle: Bundle, watched: Clip) -> None:
    talk = watched.converse()
    talk.ask(QUESTIONS[0], 2).read()
    assert isinstance(bundle.processing, FixedFrames)
    with refused("generate", bundle.processing.image_token_id or -1):
        talk.ask(f"And {bundle.processing.image_token}?")
    talk.ask(QUESTIONS[1], 2).read()


def test_a_question_waits_for_the_answer_before(watched: Clip) -> None:
    talk = watched.converse()
    answer = talk.ask(QUESTIONS[0], 4)
    next(answer)
    with refused("conversation"):
        talk.ask(QUESTIONS[1])
    answer.close()
    talk.ask(QUESTIONS[1], 2).read()
    assert len(talk.turns) == 2


# How an answer is chosen, and where it ends


def test_draws_are_those_of_the_seed(watched: Clip) -> None:
    sampling = Sampling(temperature=1.5, top_p=0.95, seed=5)
    answers = [watched.ask(QUESTIONS[0], 12, sampling, logprobs=3) for _ in range(2)]
    texts = [answer.read() for answer in answers]
    assert texts[0] == texts[1] != watched.ask(QUESTIONS[0], 12).read()
    assert len(answers[0].logprobs) == 12 and len(answers[0].logprobs[0].likeliest) == 3
    unsaid = watched.ask(QUESTIONS[0], 12, Sampling(temperature=1.5))
    unsaid.read()
    said = watched.ask(QUESTIONS[0], 12, unsaid.sampling)
    said.read()
    assert said.tokens == unsaid.tokens


@pytest.mark.parametrize("n", [1, 4, 7])
def test_a_text_stops_the_answer_wherever_its_pieces_end(bundle: Bundle, watched: Clip, n: int) -> None:
    whole = watched.ask(QUESTIONS[0], 12).read()
    stop = whole[n : n + 2]
    place = whole.index(stop)
    answer = watched.ask(QUESTIONS[0], 12, stop=["never there", stop])
    pieces = list(answer)
    assert "".join(pieces) == answer.text == whole[:place]
    assert answer.finish_reason == "stop" and len(answer.tokens) < 12


def test_a_stop_id_ends_it_unshown(bundle: Bundle, watched: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = watched.ask(QUESTIONS[0], 8)
    plain.read()
    stops = (plain.tokens[4],)
    monkeypatch.setattr(bundle, "processing", replace(bundle.processing, stop_token_ids=stops))
    answer = watched.ask(QUESTIONS[0], 8)
    answer.read()
    end = plain.tokens.index(stops[0])
    assert answer.finish_reason == "stop" and answer.tokens == plain.tokens[: end + 1]
    assert answer.text == bundle.text_tokenizer().decode(plain.tokens[:end])


def test_where_the_device_chooses(bundle: Bundle, watched: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given the first token, its slot and its position, and asked for no more than is wanted."""
    first = watched.ask(QUESTIONS[0], 1)
    first.read()
    begun: list[tuple[int, int, int]] = []
    left = iter([5, 6, bundle.processing.stop_token_ids[0], 8, -1])

    def steps(token: int, past_length: int, position: int, cache: Any) -> Iterator[int]:
        begun.append((token, past_length, position))
        return left

    monkeypatch.setattr(bundle.backend, "has_greedy_loop", True, raising=False)
    monkeypatch.setattr(bundle.backend, "greedy_steps", steps)
    asked = [watched.ask(QUESTIONS[0], count) for count in (3, 9, 2)]
    for answer in asked:
        if answer is not asked[2]:
            answer.read()
    assert [answer.tokens[1:] for answer in asked[:2]] == [[5, 6], [bundle.processing.stop_token_ids[0]]]
    assert next(left) == 8
    with refused("decoder"):
        asked[2].read()
    prepared = watched.prepare(QUESTIONS[0])
    assert set(begun) == {(first.tokens[0], prepared.length, prepared.next_position)}
    drawn = watched.ask(QUESTIONS[0], 3, Sampling(temperature=1.0, seed=1))
    drawn.read()
    assert len(begun) == 3  # the device draws nothing


def test_another_thread_cancels(watched: Clip) -> None:
    answer = watched.ask(QUESTIONS[0], 500)
    pieces = []
    for piece in answer:
        pieces.append(piece)
        thread = threading.Thread(target=answer.cancel)
        thread.start()
        thread.join()
    assert answer.finish_reason == "cancelled" and len(answer.tokens) < 20
    assert answer.text == "".join(pieces)


def test_one_answer_at_a_time(bundle: Bundle, frames: np.ndarray, watched: Clip) -> None:
    expected = [alone(bundle, frames, question, 6) for question in QUESTIONS]
    half = watched.ask(QUESTIONS[0], 6)
    next(half)
    other = watched.ask(QUESTIONS[1], 6)
    with refused("bundle"):
        next(other)
    with refused("bundle"):
        alone(bundle, frames, QUESTIONS[1], 2)
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        answer = watched.ask(QUESTIONS[number], 6)
        answer.read()
        found[number] = answer.tokens

    threads = [threading.Thread(target=ask, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    assert found == {}  # they wait
    half.read()
    for thread in threads:
        thread.join()
    assert [found[0], found[1]] == expected and half.tokens == expected[0]


def test_an_answer_that_nobody_reads_keeps_nobody_waiting(bundle: Bundle, watched: Clip) -> None:
    answer = watched.ask(QUESTIONS[0], 6)
    next(answer)
    del answer
    with watched.ask(QUESTIONS[0], 6) as begun:
        next(begun)
    assert begun.finish_reason == "cancelled"
    watched.ask(QUESTIONS[1], 2).read()


# What is kept


def test_memory_is_bounded(tiny_bundle: Path, frames: np.ndarray) -> None:
    with Bundle.open(tiny_bundle) as opened:
        opened.watch(frames).ask("a", 1).read()
        one = opened.decoding._store.size_bytes
        text = opened.manifest.data.model.text
        length = int(np.flatnonzero(opened.prepare(frames, "a").is_visual[0])[-1]) + 1
        assert one == 2 * text.num_layers * text.num_kv_heads * text.head_dim * length * 2
    with Bundle.open(tiny_bundle, clip_memory=2 * one) as opened:
        clips = [opened.watch(frames[::step]) for step in (1, -1)] + [opened.watch(np.flip(frames, 1))]
        for clip in clips:
            clip.ask("a", 1).read()
            assert opened.decoding._store.size_bytes <= 2 * one
        reused = [clip.ask("b", 1) for clip in clips[::-1]]
        for answer in reused:
            answer.read()
        assert [answer.reused_tokens > 0 for answer in reused] == [True, True, False]
    with Bundle.open(tiny_bundle, clip_memory=0) as opened:
        answers = [opened.watch(frames).ask("a", 1) for _ in range(2)]
        assert len({answer.read() for answer in answers}) == 1 and answers[1].reused_tokens == 0


def test_another_process_goes_on_with_it(
    tiny_bundle: Path, frames: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Bundle.open(tiny_bundle, clip_cache=tmp_path) as opened:
        first = opened.watch(frames).ask(QUESTIONS[0], 5)
        first.read()
    files = sorted(path.name.split(".", 1)[1] for path in tmp_path.iterdir())
    assert files == ["seen.npz", "slots.npz"]
    with Bundle.open(tiny_bundle, clip_cache=tmp_path) as opened:
        run = opened.backend.run

        def without_vision(component: str, inputs: Any) -> Any:
            assert component == "embedding"
            return run(component, inputs)

        monkeypatch.setattr(opened.backend, "run", without_vision)
        clip = opened.watch(frames)
        again = clip.ask(QUESTIONS[0], 5)
        again.read()
        assert again.tokens == first.tokens and again.reused_tokens > 250 and clip.timings == {}
    with Bundle.open(tiny_bundle, clip_cache=tmp_path) as opened:  # other frames, and no anchors: not the same
        other = opened.watch(frames[::-1]).ask(QUESTIONS[0], 5)
        plain = opened.watch(frames, anchoring=Anchoring(enabled=False)).ask(QUESTIONS[0], 5)
        other.read()
        plain.read()
        assert other.reused_tokens == plain.reused_tokens == 0


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other"])
def test_a_damaged_file_counts_as_none(tiny_bundle: Path, frames: np.ndarray, tmp_path: Path, damage: str) -> None:
    with Bundle.open(tiny_bundle, clip_cache=tmp_path) as opened:
        first = opened.watch(frames).ask(QUESTIONS[0], 5)
        first.read()
    for path in tmp_path.iterdir():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= damage == "bit"
        if damage == "other":
            with path.open("wb") as file:
                np.savez(file, decoder_0=np.zeros((1, 2, 3)), visual_tokens=np.zeros((2, 3), np.float32))
        else:
            path.write_bytes(bytes(content[: {"cut": len(content) - 9, "bit": len(content), "empty": 0}[damage]]))
    with Bundle.open(tiny_bundle, clip_cache=tmp_path) as opened:
        again = opened.watch(frames).ask(QUESTIONS[0], 5)
        again.read()
    assert again.tokens == first.tokens and again.reused_tokens == 0


def test_another_bundle_finds_nothing(
    tiny_bundle: Path, copied_bundle: Path, frames: np.ndarray, tmp_path: Path
) -> None:
    """Its manifest says other hashes, and with them other keys."""
    with Bundle.open(tiny_bundle, clip_cache=tmp_path / "kept") as opened:
        opened.watch(frames).ask(QUESTIONS[0], 2).read()
    rewrite(copied_bundle, "config.json", (copied_bundle / "config.json").read_bytes() + b"\n")
    assert read_manifest(copied_bundle).data != read_manifest(tiny_bundle).data
    with Bundle.open(copied_bundle, clip_cache=tmp_path / "kept") as opened:
        clip = opened.watch(frames)
        assert set(clip.timings) == {"vision", "score"}
        answer = clip.ask(QUESTIONS[0], 2)
        answer.read()
        assert answer.reused_tokens == 0


# What is refused


def test_what_is_refused(bundle: Bundle, watched: Clip, frames: np.ndarray, tmp_path: Path) -> None:
    gain = np.zeros(5, np.float32)
    for where, call in {
        "anchoring": lambda: bundle.watch(frames, anchoring=Anchoring(key_log_gain=gain)),
        "frames": lambda: bundle.watch(3),  # type: ignore[arg-type]
        str(tmp_path / "none.mp4"): lambda: bundle.watch(tmp_path / "none.mp4"),
        "question": lambda: watched.ask(None),  # type: ignore[arg-type]
        "max_new_tokens": lambda: watched.ask("a", 0),
        "logprobs": lambda: watched.ask("a", logprobs=-1),
        "stop": lambda: watched.ask("a", stop=[""]),
        "generate": lambda: watched.ask("a", 10**6),
        "clip_memory": lambda: Bundle.open(bundle.manifest, clip_memory=-1),
        "clip_cache": lambda: Bundle.open(bundle.manifest, clip_cache=3),  # type: ignore[arg-type]
    }.items():
        with refused(where):
            call()
    with refused("stop"):
        watched.ask("a", stop="abc")


def test_a_closed_bundle_answers_nothing(tiny_bundle: Path, frames: np.ndarray) -> None:
    with Bundle.open(tiny_bundle) as opened:
        clip = opened.watch(frames)
    with refused("bundle"):
        clip.ask("a")
    with refused("bundle"):
        opened.watch(frames)


def test_an_error_on_the_way_gives_the_turn_back(
    bundle: Bundle, watched: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = watched.converse()
    answer = talk.ask(QUESTIONS[0], 6)
    next(answer)
    with monkeypatch.context() as patch:
        patch.setattr(bundle.backend, "decode", lambda *_: np.full((1, 700), np.nan, np.float32))
        with refused("decoder"):
            answer.read()
    assert answer.finish_reason == "failed" and talk.turns == []
    talk.ask(QUESTIONS[0], 2).read()
    assert len(talk.turns) == 1


def test_forced_tokens_leave_the_choice_alone(bundle: Bundle, frames: np.ndarray) -> None:
    prepared = bundle.prepare(frames, "a")
    encoded = bundle.watch(frames).encoded(prepared)
    wish = Wish(TokenChoice(GREEDY, ()), 3, (5,), np.array([5, 6, 7]))
    found = list(bundle.decoding.tokens(encoded, wish, StageClock(bundle.backend), Row()))
    assert found == [5, 6, 7]
