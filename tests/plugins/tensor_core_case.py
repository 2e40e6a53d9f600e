"""What both tensor-core kernels of AnchoredAttention are held against: how one is run on the CPU, and the cases."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
from attention_case import Array, Case, Inputs, launcher, random_inputs, reference, run_on_host

# As in test_anchored_attention_kernel.py: the weights' rounding and the result's.
TOLERANCE = {"float16": 2 * 2.0**-11 + 4e-6, "bfloat16": 2 * 2.0**-8 + 4e-6}
CACHE_BYTES = 20_000  # a small cache, so that plans have sections


@dataclass(frozen=True)
class TensorCoreKernel:
    """One of the two, on an emulated GPU."""

    library: ctypes.CDLL
    architecture: int
    tile_keys: int  # of a prefill tile at head_dim 64

    @property
    def is_hopper(self) -> bool:
        return self.architecture == 90

    def set_gpu(self, sm_count: int, architecture: int | None = None, cache_bytes: int = CACHE_BYTES) -> None:
        self.library.simt_set_gpu(architecture or self.architecture, sm_count, cache_bytes)

    def run(self, case: Case, inputs: Inputs, schedule: int = 0, has_workspace: bool = False) -> Array:
        """The result, after checking that this kernel worked it out: only the Hopper kernel takes wgmma."""
        before = self.library.simt_wgmma_products()
        result = run_on_host(launcher(self.library, schedule, has_workspace), case, inputs)
        sees_keys = case.kv_length is None or max(case.kv_length) > 0
        assert (self.library.simt_wgmma_products() > before) == (self.is_hopper and sees_keys)
        return result

    def assert_right(
        self, case: Case, inputs: Inputs | None = None, schedule: int = 0, has_workspace: bool = False
    ) -> Array:
        inputs = inputs or random_inputs(case)
        expected, magnitude = reference(case, inputs)
        actual = self.run(case, inputs, schedule, has_workspace)
        error = np.abs(actual - expected)
        assert np.all(error <= TOLERANCE[case.dtype] * magnitude + 6e-8), np.max(error / (magnitude + 1e-4))
        return actual


# Around the edges of tiles of 64 and 128 rows, and of 32, 64 and 128 keys.
EDGES = [
    Case(q_len, kv_len, query_heads=1, dtype="float16", is_causal=is_causal)
    for q_len, kv_len, is_causal in (
        (17, 1, True),
        (17, 17, True),
        (63, 65, False),
        (63, 65, True),
        (64, 64, True),
        (65, 63, True),
        (127, 128, True),
        (128, 129, False),
        (129, 127, True),
        (17, 191, True),
        (17, 391, True),
        (33, 193, False),
        (140, 20, True),
        (257, 255, True),
        (65, 512, True),
    )
]
GROUPS = [
    Case(23, 170, batch=2, query_heads=heads, kv_heads=kv_heads, dtype=dtype, kv_length=(170, length))
    for heads, kv_heads, dtype, length in (
        (2, 2, "float16", 0),
        (8, 2, "bfloat16", 133),
        (8, 2, "bfloat16", 33),
        (7, 1, "float16", 128),
        (7, 1, "float16", 64),
        (4, 1, "float16", 1),
    )
]
WIDTHS = [
    Case(40, 140, query_heads=2, head_dim=width, value_head_dim=value_width, dtype=dtype, packed_heads=packed)
    for width, value_width, dtype, packed in (
        (8, None, "float16", False),
        (64, 128, "bfloat16", True),
        (80, None, "float16", True),
        (80, 72, "bfloat16", False),
        (96, None, "float16", False),
        (96, 8, "bfloat16", True),
        (104, 72, "bfloat16", False),
        (128, None, "float16", True),
        (128, 40, "float16", False),
    )
]
GAINS = [
    Case(30, 140, batch=2, gains=gains, dtype=dtype, is_causal=is_causal)
    for gains, dtype, is_causal in (
        ("none", "float16", True),
        ("wide", "float16", True),
        ("wide", "bfloat16", False),
        ("zero", "float16", True),
    )
]
OPTIONS = [
    Case(25, 70, head_dim=16, scale=8.0, dtype="float16"),
    Case(25, 70, head_dim=16, scale=1e-7, dtype="float16"),
    Case(30, 40, batch=3, shared_gains=True, dtype="float16"),
]
PREFILL = [*EDGES, *GROUPS, *WIDTHS, *GAINS, *OPTIONS]
