"""The function body of SubspaceScore: tokens → sharing score and labels, as `va_export.anchor.scoring` has it."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import AttributeProto, FunctionProto, TensorProto

from va_export.ops.subspace.projection import project_to_principal_components
from va_export.ops.subspace.self_expression import AdmmAttributes, self_expression
from va_export.ops.subspace.spectral import cluster_subspaces
from va_export.ops.subspace.tape import Tape, Value

_MIN_MAX_EPS = 1e-5  # the original's; see va_export/anchor/sharing.py
_LARGEST = 3e38  # of float32, about; a residual is below it at once


def subspace_score_body(
    domain: str, op_type: str, attributes: Sequence[str], *, with_pca: bool, is_wide: bool
) -> FunctionProto:
    """Build the function.

    Args:
        attributes: the names of the op's attributes.
        with_pca: whether pca_rank is above 0, which the function then takes for granted.
        is_wide: whether tokens (after PCA) have more features than there are tokens: decides the speed alone.
    """
    tape = Tape()
    counts = {name: tape.attribute(name, AttributeProto.INT) for name in ("n_subspaces", "max_iter")}
    settings = {name: tape.attribute(name, AttributeProto.FLOAT) for name in ("rho", "alpha_e", "alpha_z", "eps")}
    given = tape.op("Cast", tape.input("tokens"), to=TensorProto.FLOAT)
    n = given.size(0)
    usable = _are_usable(tape, given) & tape.op("Not", n < counts["n_subspaces"])
    # What cannot be scored is replaced by ones, for which every step below is defined, and the solver stops at once.
    settings["eps"] = tape.op("Where", usable, settings["eps"], _LARGEST)
    safe = tape.op("Where", usable, given, 1.0)
    tokens = safe / safe.abs().max()  # the score does not depend on the scale
    if with_pca:
        tokens = project_to_principal_components(tape, tokens, tape.attribute("pca_rank", AttributeProto.INT))
    options = AdmmAttributes(max_iter=counts["max_iter"], **settings)
    expression, is_finite = self_expression(tape, tokens, options, is_wide=is_wide)
    labels = cluster_subspaces(tape, expression, counts["n_subspaces"])
    raw = expression.sum(1) * _cluster_sizes(tape, labels, counts["n_subspaces"]) / n.to_float()
    score = (raw - raw.min()) / (raw.max() - raw.min() + _MIN_MAX_EPS)
    is_scored = usable & is_finite
    results = {
        "sharing_score": tape.op("Where", is_scored, score, 0.0),
        "labels": tape.op("Where", is_scored, labels, 0),
    }
    return tape.function(domain, op_type, ["tokens"], results, attributes)


def _are_usable(tape: Tape, tokens: Value) -> Value:
    """Whether all are finite, and not all the same."""
    is_finite = (tokens.abs() < _LARGEST).to_float().min() > 0.0  # NaN fails every comparison
    differ = tape.op("Not", tokens.equals(tape.op("Slice", tokens, [0], [1], [0]))).to_float().max() > 0.0
    return is_finite & differ


def _cluster_sizes(tape: Tape, labels: Value, n_subspaces: Value) -> Value:
    """[N]: how many tokens have each token's label."""
    member = labels.column().equals(tape.op("Range", 0, n_subspaces, 1).row()).to_float()
    return tape.op("Squeeze", member @ member.sum(0).column(), [1])
