"""The custom op `ai.videoanchor::SubspaceScore`, version 1, declared once.

Sharing score of every visual token of a video (VideoAnchor, arXiv 2509.25151, "Subspace-to-Scaler"): sparse
self-expression by ADMM, spectral clustering of its affinity, row sum times cluster size, min-max normalised. The
eager reference is `va_export.anchor.subspace_score`, whose arguments the attributes repeat.

The function body agrees with the reference in float64 to 1e-4 where both give the same labels (measured: 2e-5 on the
original's own data and on planted subspaces). A token's label, and with it a factor of its score, can differ

- where the token lies on the border of two subspaces: rounding decides, in either;
- where eigenvalues K and K + 1 of the affinity are equal to float32, or the affinity falls apart into more than K
  groups (frames that repeat exactly): the basis of eigenvectors is arbitrary, in the reference too;
- where two principal components up to pca_rank differ in variance by less than about 1e-5 of the first's: they mix;
- where the discretisation leaves a subspace without a token: LAPACK chooses its direction there, the body keeps it;
- above 16384 tokens, where the discretisation starts from another row.

Where the reference refuses, a graph cannot: tokens that are not finite, fewer tokens than subspaces, a token that is
zero or orthogonal to every other, and a solver that ends without a result, by the same bounds for float32
(`va_export.anchor.scorable`), give score 0, which leaves attention plain, and label -1 throughout: whoever runs the
graph looks at the labels and refuses. Tokens that are all equal give score 0 and label 0, as in the reference. A solver
that stops at max_iter with a rough result says nothing. pca_rank must not be
above min(N, D): what is beyond counts as zero.

The body is the portable form. 1024 tokens, pca_rank 64 and 2252 iterations took 13 to 15 s of one CPU core in ONNX
Runtime 1.32 (processor time, on a busy machine).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import onnx
import onnx.defs
from msgspec.structs import fields

from va_export.ops.declaration import DOMAIN, FLOAT_TYPES, VERSION, register_schema
from va_export.settings import ScoreSettings

if TYPE_CHECKING:
    from collections.abc import Callable

OP_TYPE = "SubspaceScore"
INPUTS = ("tokens",)
OUTPUTS = ("sharing_score", "labels")
ATTRIBUTES = tuple(field.name for field in fields(ScoreSettings))


@cache
def schema() -> onnx.defs.OpSchema:
    """The op's ONNX schema; the first call registers it with `onnx.defs`. Attributes and defaults are those of
    `ScoreSettings`."""
    parameter = onnx.defs.OpSchema.FormalParameter
    attribute = onnx.defs.OpSchema.Attribute
    return register_schema(
        OP_TYPE,
        doc=__doc__ or "",
        inputs=[parameter("tokens", "T", description="(N, D), visual tokens as they enter the decoder")],
        outputs=[
            parameter("sharing_score", "tensor(float)", description="(N,), in [0, 1]"),
            parameter("labels", "tensor(int64)", description="(N,), the subspace of each token; -1: no score"),
        ],
        type_constraints=[("T", list(FLOAT_TYPES), "The type of the tokens; arithmetic is float32.")],
        attributes=[
            attribute(field.name, onnx.helper.make_attribute(field.name, field.default))
            for field in fields(ScoreSettings)
        ],
    )


@cache
def function_body(*, with_pca: bool = False, is_wide: bool = False) -> onnx.FunctionProto:
    """The op as an ONNX model-local function in opset-24 standard ops. A node that uses it must state every attribute.

    Args:
        with_pca: for nodes whose pca_rank is above 0, and for no others.
        is_wide: compute as for tokens with more features (after PCA) than there are tokens. The results are the same
            for any shape; `is_wide_for` says which form is the faster.
    """
    from va_export.ops.subspace.body import subspace_score_body

    return subspace_score_body(DOMAIN, OP_TYPE, ATTRIBUTES, with_pca=with_pca, is_wide=is_wide)


def is_wide_for(n_tokens: int, n_features: int) -> bool:
    """Whether an iteration takes fewer multiplications in the wide form: N³ + 2MN² < 2MN² + 2M²N, with M features and
    one row for the affine constraint."""
    return n_tokens**2 < 2 * (n_features + 1) ** 2


_TORCH_SCHEMA = (
    "(Tensor tokens, int n_subspaces, int pca_rank, float rho, float alpha_e, float alpha_z, float eps, int max_iter)"
    " -> (Tensor, Tensor)"
)


@cache
def torch_op() -> Callable[..., object]:
    """The op for PyTorch graphs: the reference outside of tracing, one opaque node inside `torch.export`."""
    import torch

    from va_export.anchor import subspace_score

    @torch.library.custom_op("va_export::subspace_score", mutates_args=(), schema=_TORCH_SCHEMA)
    def op(tokens, n_subspaces, pca_rank, rho, alpha_e, alpha_z, eps, max_iter):  # type: ignore[no-untyped-def]
        settings = (n_subspaces, pca_rank, rho, alpha_e, alpha_z, eps, max_iter)
        details = subspace_score(tokens, *settings, return_details=True)
        return details.sharing_score, details.labels

    @op.register_fake
    def _(tokens, n_subspaces, pca_rank, rho, alpha_e, alpha_z, eps, max_iter):  # type: ignore[no-untyped-def]
        n = tokens.shape[0]
        return tokens.new_empty(n, dtype=torch.float32), tokens.new_empty(n, dtype=torch.int64)

    return op


def onnx_translation() -> dict[Callable[..., object], Callable[..., object]]:
    """The entry for `torch.onnx.export(custom_translation_table=…)`."""
    import onnxscript
    import torch

    schema()
    opset = onnxscript.values.Opset(DOMAIN, VERSION)

    def translate(tokens, n_subspaces, pca_rank, rho, alpha_e, alpha_z, eps, max_iter):  # type: ignore[no-untyped-def]
        values = (n_subspaces, pca_rank, rho, alpha_e, alpha_z, eps, max_iter)
        return opset.SubspaceScore(tokens, **dict(zip(ATTRIBUTES, values, strict=True)))

    torch_op()
    return {torch.ops.va_export.subspace_score.default: translate}
