"""The exportable rotary embedding against Hugging Face's, and against the formula in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel, LlamaRotaryEmbedding

from va_export.models.family import DynamicNtkScaling, LongRopeScaling, TextShape
from va_export.models.rotary_embedding import DynamicNtkRotaryEmbedding, LongRopeEmbedding, replace_rotary_embedding

HEAD_DIM, BASE, MAX_POSITIONS = 32, 1e6, 64
# Angles are float32 products position × frequency: half a unit in the last place each for the frequency (ours, and one
# or two for theirs, which is itself computed in float32), and for the product.
RELATIVE_ANGLE_ERROR = 4 * 2.0**-24


def llama_config(factor: float | None) -> LlamaConfig:
    rope = {"rope_type": "default", "rope_theta": BASE}
    if factor is not None:
        rope = {"rope_type": "dynamic", "rope_theta": BASE, "factor": factor}
    return LlamaConfig(
        vocab_size=8,
        hidden_size=4 * HEAD_DIM,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters=rope,
    )


def expected(positions: np.ndarray, factor: float | None) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of positions [B, S] by the formula, in float64, each row with its own length."""
    length = np.maximum(positions.max(axis=1) + 1, MAX_POSITIONS)
    ratio = np.ones(len(positions)) if factor is None else factor * length / MAX_POSITIONS - (factor - 1)
    base = BASE * ratio ** (HEAD_DIM / (HEAD_DIM - 2))
    frequencies = base[:, None] ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = positions[:, :, None] * frequencies[:, None, :]
    angles = np.concatenate([angles, angles], axis=-1)
    return np.cos(angles), np.sin(angles)


@pytest.mark.parametrize("factor", [None, 1.0, 2.0, 2.7])
@pytest.mark.parametrize("length", [1, 5, MAX_POSITIONS - 1, MAX_POSITIONS, MAX_POSITIONS + 1, 111, 1000, 20_000])
def test_equals_hugging_face_and_the_formula(factor: float | None, length: int) -> None:
    positions = torch.arange(length)[None]
    x = torch.zeros(1)
    ours = DynamicNtkRotaryEmbedding(HEAD_DIM, BASE, MAX_POSITIONS, factor)(x, positions)
    theirs = LlamaRotaryEmbedding(llama_config(factor))(x, positions)
    tolerance = length * RELATIVE_ANGLE_ERROR + 2e-7
    for mine, hugging_face, truth in zip(ours, theirs, expected(positions.numpy(), factor), strict=True):
        assert mine.dtype == torch.float32
        assert mine.shape == hugging_face.shape == (1, length, HEAD_DIM)
        np.testing.assert_allclose(mine.numpy(), truth, rtol=0, atol=tolerance)
        np.testing.assert_allclose(mine.numpy(), hugging_face.numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("factor", [None, 2.0])
def test_up_to_the_trained_length_equals_hugging_face_bit_for_bit(factor: float | None) -> None:
    positions = torch.arange(MAX_POSITIONS)[None]
    ours = DynamicNtkRotaryEmbedding(HEAD_DIM, BASE, MAX_POSITIONS, factor)(torch.zeros(1), positions)
    theirs = LlamaRotaryEmbedding(llama_config(factor))(torch.zeros(1), positions)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def test_up_to_the_trained_length_scaling_changes_nothing_at_all() -> None:
    positions = torch.arange(MAX_POSITIONS)[None]
    scaled = DynamicNtkRotaryEmbedding(HEAD_DIM, BASE, MAX_POSITIONS, 2.7)(torch.zeros(1), positions)
    plain = DynamicNtkRotaryEmbedding(HEAD_DIM, BASE, MAX_POSITIONS, None)(torch.zeros(1), positions)
    assert torch.equal(scaled[0], plain[0])
    assert torch.equal(scaled[1], plain[1])


def test_every_row_has_its_own_length() -> None:
    positions = torch.tensor([[0, 3, 9], [0, 3, 500], [640, 641, 642]])
    cos, sin = DynamicNtkRotaryEmbedding(HEAD_DIM, BASE, MAX_POSITIONS, 2.0)(torch.zeros(1), positions)
    truth = expected(positions.numpy(), 2.0)
    np.testing.assert_allclose(cos.numpy(), truth[0], rtol=0, atol=650 * RELATIVE_ANGLE_ERROR)
    np.testing.assert_allclose(sin.numpy(), truth[1], rtol=0, atol=650 * RELATIVE_ANGLE_ERROR)
    assert not torch.equal(cos[0, 1], cos[1, 1])  # position 3 turns slower in the longer sequence


def test_a_decode_step_continues_its_sequence() -> None:
    rope = DynamicNtkRotaryEmbedding(HEAD_DIM, BASE, MAX_POSITIONS, 2.0)
    whole = rope(torch.zeros(1), torch.arange(200)[None])
    step = rope(torch.zeros(1), torch.tensor([[199]]))
    assert torch.equal(whole[0][:, -1:], step[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_angles_stay_float32_whatever_the_model_computes_in(dtype: torch.dtype) -> None:
    rope = DynamicNtkRotaryEmbedding(HEAD_DIM, BASE, MAX_POSITIONS, 2.0)
    positions = torch.arange(3000)[None]
    cos, sin = rope(torch.zeros(1, dtype=dtype), positions)
    full_cos, full_sin = rope(torch.zeros(1), positions)
    assert cos.dtype == sin.dtype == dtype
    assert torch.equal(cos, full_cos.to(dtype))
    assert torch.equal(sin, full_sin.to(dtype))


@pytest.mark.parametrize("factor", [None, 2.0])
def test_exports_with_a_dynamic_length(factor: float | None) -> None:
    rope = DynamicNtkRotaryEmbedding(HEAD_DIM, BASE, MAX_POSITIONS, factor)
    batch, length = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("length", min=1, max=4096)
    program = torch.export.export(
        rope, (torch.zeros(2), torch.arange(14).reshape(2, 7)), dynamic_shapes=(None, {0: batch, 1: length})
    )
    for shape in ((1, 1), (1, 64), (3, 500)):
        positions = torch.arange(shape[0] * shape[1]).reshape(shape)
        exported = program.module()(torch.zeros(2), positions)
        eager = rope(torch.zeros(2), positions)
        assert torch.equal(exported[0], eager[0])
        assert torch.equal(exported[1], eager[1])


def text_shape(scaling: DynamicNtkScaling | LongRopeScaling | None) -> TextShape:
    return TextShape(
        hidden_size=4 * HEAD_DIM,
        num_layers=1,
        num_heads=4,
        num_kv_heads=4,
        head_dim=HEAD_DIM,
        intermediate_size=8,
        vocab_size=8,
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=1e-6,
        rope_theta=BASE,
        rope_scaling=scaling,
    )


def test_takes_its_place_in_a_hugging_face_model() -> None:
    torch.manual_seed(0)
    model = LlamaModel(llama_config(2.0)).eval()
    ids = torch.randint(0, 8, (1, 150))
    with torch.no_grad():
        before = model(ids).last_hidden_state
        replace_rotary_embedding(model, text_shape(DynamicNtkScaling(2.0)))
        after = model(ids).last_hidden_state
    assert isinstance(model.rotary_emb, DynamicNtkRotaryEmbedding)
    assert not list(model.rotary_emb.state_dict())
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    with pytest.raises(TypeError, match="no rotary_emb"):
        replace_rotary_embedding(torch.nn.Linear(1, 1), text_shape(None))


@pytest.mark.parametrize(
    "scaling", [None, DynamicNtkScaling(2.0), LongRopeScaling((1.0,) * (HEAD_DIM // 2), (3.0,) * (HEAD_DIM // 2), 70)]
)
def test_the_position_from_which_angles_follow_the_calls_length(
    scaling: DynamicNtkScaling | LongRopeScaling | None,
) -> None:
    """It is the first last position with which position 1 has other angles than in a call of two."""
    shape = text_shape(scaling)
    model = LlamaModel(llama_config(2.0))
    replace_rotary_embedding(model, shape)
    alone = model.rotary_emb(torch.zeros(1), torch.arange(2)[None])[0][0, 1]
    changed = [
        last
        for last in range(2, 3 * MAX_POSITIONS)
        if not torch.equal(model.rotary_emb(torch.zeros(1), torch.tensor([[1, last]]))[0][0, 0], alone)
    ]
    assert shape.whole_from == (changed[0] if changed else None)
    assert (scaling is None) == (not changed)


@pytest.mark.parametrize(("length", "is_long"), [(4096, False), (4097, True)])
def test_long_rope_is_hugging_faces(length: int, is_long: bool) -> None:
    """Its own module, whose list follows from the largest position; cosines are stretched with either list."""
    from transformers import Phi3Config
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    short, long = [1.0 + i / 50 for i in range(12)], [2.0 + i * 3 for i in range(12)]
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": short, "long_factor": long}
    config = Phi3Config(
        hidden_size=96,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        pad_token_id=None,
        rope_parameters={**rope, "original_max_position_embeddings": 4096},
    )
    scaling = LongRopeScaling(tuple(short), tuple(long), 4096)
    ours = LongRopeEmbedding(24, 1e4, scaling, 131072)
    positions, hidden = torch.arange(length)[None], torch.zeros(1, length, 96)
    expected = Phi3RotaryEmbedding(config)(hidden, positions)
    for mine, theirs in zip(ours(hidden, positions), expected, strict=True):
        # float32 angles of up to 4 096 radians are 2e-4 apart by one rounding
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=0, atol=5e-4)
    other = ours(hidden[:, :4096], torch.arange(4096)[None])[0][0, 5]
    assert (torch.equal(other, ours(hidden, positions)[0][0, 5])) is not is_long
