"""The whole function body: tokens → sharing score and labels."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import AttributeProto, FunctionProto, TensorProto

from va_export.ops.subspace.projection import project_to_principal_components
from va_export.ops.subspace.self_expression import AdmmAttributes, self_expression
from va_export.ops.subspace.spectral import cluster_subspaces
from va_export.ops.subspace.tape import Tape, Value

_MIN_MAX_EPS = 1e-5  # the original's; see va_export/anchor/sharing.py


def subspace_score_body(domain: str, op_type: str, attributes: Sequence[str], *, with_pca: bool, is_wide: bool) -> FunctionProto:
    """Build it."""
    tape = Tape()
    settings = {
        name: tape.attribute(name, AttributeProto.FLOAT) for name in ("rho", "alpha_e", "alpha_z", "eps")
    }
    counts = {name: tape.attribute(name, AttributeProto.INT) for name in ("n_subspaces", "max_iter")}
    given = tape.op("Cast", tape.input("tokens"), to=TensorProto.FLOAT)
    n = given.size(0)
    largest = given.abs().max()
    differ = (given - tape.op("Slice", given, [0], [1], [0])).abs().max() > 0.0
    # NaN fails every comparison.
    usable = differ & (largest > 0.0) & (largest < 3e38) & tape.op("Not", n < counts["n_subspaces"])
    tokens = tape.op("Where", usable, given / largest, 1.0)
    if with_pca:
        tokens = project_to_principal_components(tape, tokens, tape.attribute("pca_rank", AttributeProto.INT))
    options = AdmmAttributes(max_iter=counts["max_iter"], **settings)
    expression, is_finite = self_expression(tape, tokens, options, is_wide=is_wide)
    labels = cluster_subspaces(tape, expression, counts["n_subspaces"])
    raw = expression.sum(1) * _cluster_sizes(tape, labels, counts["n_subspaces"]) / n.to_float()
    score = (raw - raw.min()) / (raw.max() - raw.min() + _MIN_MAX_EPS)
    usable = usable & is_finite
    results = {
        "sharing_score": tape.op("Where", usable, score, 0.0),
        "labels": tape.op("Where", usable, labels, 0),
    }
    return tape.function(domain, op_type, ["tokens"], results, attributes)


def _cluster_sizes(tape: Tape, labels: Value, n_subspaces: Value) -> Value:
    """[N]: how many tokens have each token's label."""
    member = labels.column().equals(tape.op("Range", 0, n_subspaces, 1).row()).to_float()
    return tape.op("Squeeze", member @ member.sum(0).column(), [1])
