"""The score's kernels with one way of multiplying on one GPU: whether they agree with the host's solver."""

from __future__ import annotations

import ctypes

import numpy as np

from va_export.anchor import subspace_score
from va_export.native.device import Array, Device
from va_export.native.kernels import PRODUCTS, select_kernel
from va_export.native.selftest.attention_checks import WrongError
from va_export.native.subspace_score_params import (
    SOLVED,
    SubspaceScoreParams,
    SubspaceScoreReport,
    bind,
)
from va_export.settings import ScoreSettings

# float32 where the host takes float64: 20 roundings of 6e-8 on numbers up to 10, which the min-max of the score divides
# by its range; the iteration may stop one step apart, which moves C by less than eps.
_TOLERANCE = 1e-4
_TIMED, _WARM_UP = 20, 2
# The solver's thin form and its Gram form; with PCA and without. Iterations are bounded: what is compared is the same
# number of them, and a GPU that shows a picture is not kept for seconds.
_CASES = (
    (40, 70, ScoreSettings(n_subspaces=4, max_iter=6)),
    (70, 66, ScoreSettings(n_subspaces=3, alpha_e=20.0, max_iter=5)),
    (90, 96, ScoreSettings(n_subspaces=3, pca_rank=16, max_iter=6)),
)


def check_score(device: Device, kernel: str) -> tuple[float, ...]:
    """Milliseconds of the last case, measured 20 times, for kernels that are right.

    Raises:
        WrongError: they are not.
        VaExportError: CUDA refused something.
    """
    select_kernel(device.library, device.index, PRODUCTS, kernel)
    launch = None
    for seed, (count, dim, settings) in enumerate(_CASES):
        device.reset()
        tokens = planted_tokens(count, settings.n_subspaces, dim, seed)
        launch = _ScoreLaunch(device, tokens, settings)
        launch.run()
        first = launch.result(kernel)
        expected = _on_host(tokens, settings)
        if not np.abs(first - expected).max() <= _TOLERANCE:
            most = np.abs(first - expected).max()
            raise WrongError(
                f"a score is off by {most:.1e}, where {_TOLERANCE:.1e} is allowed: {count} tokens of {dim}"
            )
        launch.run()
        if launch.result(kernel).tobytes() != first.tobytes():
            raise WrongError(f"two runs on equal inputs differ: {count} tokens of {dim}")
    assert launch is not None
    graph = device.capture(launch.queue)
    times = [device.replay(graph) for _ in range(_WARM_UP + _TIMED)]
    device.free_graph(graph)
    return tuple(times[_WARM_UP:])


def planted_tokens(count: int, subspaces: int, dim: int, seed: int) -> Array:
    """Points near random three-dimensional subspaces, float32 [count, dim]."""
    rng = np.random.default_rng(seed)
    bases = [np.linalg.qr(rng.standard_normal((dim, 3)))[0].T for _ in range(subspaces)]
    tokens = np.stack([rng.standard_normal(3) @ bases[i % subspaces] for i in range(count)])
    return np.asarray(tokens + 0.05 * rng.standard_normal(tokens.shape), np.float32)


def _on_host(tokens: Array, settings: ScoreSettings) -> Array:
    import warnings

    from msgspec.structs import asdict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it stops at max_iter, as was asked
        return np.asarray(subspace_score(tokens, **asdict(settings), dtype="float64"))


class _ScoreLaunch:
    """Tokens on the GPU, and room for their score."""

    def __init__(self, device: Device, tokens: Array, settings: ScoreSettings) -> None:
        self._device, self._count = device, len(tokens)
        self._library = bind(device.library)
        self.params = SubspaceScoreParams.of(
            tokens.shape,
            "float32",
            settings,
            tokens=device.upload(tokens),
            sharing_score=device.upload(np.full(self._count, np.nan, np.float32)),
            labels=device.upload(np.full(self._count, -2, np.int64)),
            report=device.allocate(ctypes.sizeof(SubspaceScoreReport)),
        )
        size = self._library.va_subspace_score_workspace_bytes(ctypes.byref(self.params))
        self.params.workspace, self.params.workspace_bytes = device.allocate(size), size

    def queue(self) -> None:
        """Launch once."""
        error = self._library.va_subspace_score_launch(ctypes.byref(self.params), self._device.streams[0])
        if error:
            raise WrongError(f"its launch was refused (CUDA error {error})")

    def run(self) -> None:
        """Launch once, from poisoned scores."""
        self._device.write(self.params.sharing_score, np.full(self._count, np.nan, np.float32))
        self.queue()

    def result(self, kernel: str) -> Array:
        """The scores, after all work."""
        buffer = np.empty(ctypes.sizeof(SubspaceScoreReport), np.uint8)
        report = SubspaceScoreReport.from_buffer_copy(self._device.read(self.params.report, buffer).tobytes())
        if report.status != SOLVED:
            raise WrongError(f"{kernel} reports status {report.status} for tokens that have a score")
        return self._device.read(self.params.sharing_score, np.empty(self._count, np.float32))
