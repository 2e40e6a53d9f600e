"""What a user decides: scoring, gains and sizes. Shared by the exporter and the runtimes.

Field names are the JSON names in a bundle's manifest and the TOML names in a recipe. Ranges are checked whenever
settings are made, types only where they are read (`va_export.documents`).
"""

from __future__ import annotations

from typing import ClassVar

from msgspec.structs import fields

from va_export.documents import Form
from va_export.errors import VaExportError


def check_tolerances(atol: float | None, rtol: float | None) -> None:
    """Refuse tolerances that nothing could be compared with.

    Raises:
        VaExportError: negative, infinite or not a number.
    """
    for name, tolerance in (("--atol", atol), ("--rtol", rtol)):
        if tolerance is not None and not 0 <= tolerance < float("inf"):
            raise VaExportError(
                f"a tolerance is a number of at least 0, not {tolerance}", where=name, fix="give such a number"
            )


class ScoreSettings(Form, frozen=True):
    """How visual tokens are scored; the defaults are the paper's (arXiv 2509.25151, section 4.1).

    n_subspaces 0, which a recipe writes as "auto", is not the paper's: as many as an eigengap shows, video by video
    (`va_export.anchor.spectral.count_subspaces`). The host scores so; the op SubspaceScore takes a number above 0.
    """

    AUTOMATIC: ClassVar[int] = 0

    n_subspaces: int = 24
    pca_rank: int = 0
    rho: float = 300.0
    alpha_e: float = 800.0
    alpha_z: float = 800.0
    eps: float = 2e-4
    max_iter: int = 10000

    def __post_init__(self) -> None:
        papers = {field.name: field.default for field in fields(self)}
        for name in ("rho", "alpha_e", "alpha_z", "eps", "max_iter"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise VaExportError(
                    f"{name} must be above 0 and finite, not {value}",
                    where="score settings",
                    fix=f"the paper has {papers[name]:g}",
                )
        if self.n_subspaces < 0:
            raise VaExportError(
                f"n_subspaces must be above 0, or automatic, not {self.n_subspaces}",
                where="score settings",
                fix='the paper has 24; "auto" takes as many as an eigengap shows',
            )
        if self.pca_rank < 0:
            raise VaExportError(
                f"pca_rank must be at least 0, not {self.pca_rank}",
                where="score settings",
                fix="use 0 for no projection, or the number of principal components",
            )


class GainSettings(Form, frozen=True):
    """How strongly anchors are raised: γ_K = 1 + alpha_k · score, γ_V = 1 + alpha_v · score at visual positions.

    alpha_q is recorded because the paper states it; it cancels in the softmax and is not used.

    target_visual_share, off at 0, is not the paper's: a share of attention, below 1, that visual tokens are to get in
    prefill. alpha_k is then found prompt by prompt (`va_export.anchor.gains.alpha_k_for_target_share`), and the one
    given here is not used. plain_visual_share is what they get without gains, as measured on the model; at 0 it is
    taken for their share of the prompt's tokens.
    """

    alpha_k: float
    alpha_v: float
    alpha_q: float = 0.0
    target_visual_share: float = 0.0
    plain_visual_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("alpha_k", "alpha_v"):
            value = getattr(self, name)
            if not -1 <= value < 1e4:
                raise VaExportError(
                    f"{name} must lie in [-1, 10000), not {value}: below -1 a gain would be negative",
                    where="gain settings",
                    fix=f"raise {name}; 0 leaves it out",
                )
        for name in ("target_visual_share", "plain_visual_share"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise VaExportError(
                    f"{name} must lie in [0, 1), not {value}",
                    where="gain settings",
                    fix="give a share of attention, such as 0.6; 0 leaves it out",
                )
        if self.plain_visual_share > 0 and self.target_visual_share == 0:
            raise VaExportError(
                "plain_visual_share has no use without target_visual_share",
                where="gain settings",
                fix="set target_visual_share too, or leave both out",
            )


class Limits(Form, frozen=True):
    """The sizes that engines are built for, and the sizes that they are tuned for.

    max_input_len is what the decoder takes at once, and bounds a video's visual tokens; a longer prompt goes in chunks.
    max_pixels is of a frame as the model sees it, for models whose frames keep their own sizes; None is the model's
    own.
    """

    max_batch_size: int = 1
    max_input_len: int = 4096
    max_kv_cache_capacity: int = 8192
    max_frames: int = 16
    opt_input_len: int = 2304
    opt_frames: int = 8
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) is not None and value < 1:
                option = f"--{field.name.replace('_', '-')}"
                raise VaExportError(
                    f"{field.name} must be at least 1, not {getattr(self, field.name)}",
                    where="limits",
                    fix=f"raise {option}" if field.name.startswith("max") else f"raise {field.name}",
                )
        if self.max_input_len > self.max_kv_cache_capacity:
            raise VaExportError(
                f"max_input_len ({self.max_input_len}) is larger than max_kv_cache_capacity "
                f"({self.max_kv_cache_capacity}): the longest prompt would not fit the cache",
                where="limits",
                fix="raise --max-kv-cache-capacity or lower --max-input-len",
            )
