"""The function body of SubspaceScore: tokens → sharing score and labels, as `va_export.anchor.scoring` has it."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import AttributeProto, FunctionProto, TensorProto

from va_export.anchor.scorable import EQUAL_ROUNDINGS, NO_SCORE, ROUNDOFF
from va_export.ops.subspace.projection import project_to_principal_components
from va_export.ops.subspace.self_expression import AdmmAttributes, self_expression
from va_export.ops.subspace.spectral import cluster_subspaces
from va_export.ops.subspace.tape import Tape, Value

_MIN_MAX_EPS = 1e-5  # the original's; see va_export/anchor/sharing.py
_LARGEST = 3e38  # of float32, about; NaN is not below it, and every residual is


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
    largest = given.abs().max()
    is_given = (largest < _LARGEST) & tape.op("Not", n < tape.op("Max", counts["n_subspaces"], 2))
    usable = is_given & _differ(tape, given, largest)
    # What cannot be scored is replaced by ones, for which every step below is defined, and the solver stops at once.
    settings["eps"] = tape.op("Where", usable, settings["eps"], _LARGEST)
    safe = tape.op("Where", usable, given, 1.0)
    tokens = safe / safe.abs().max()  # the score does not depend on the scale
    if with_pca:
        tokens = project_to_principal_components(tape, tokens, tape.attribute("pca_rank", AttributeProto.INT))
    options = AdmmAttributes(max_iter=counts["max_iter"], **settings)
    expression, is_result = self_expression(tape, tokens, options, is_wide=is_wide)
    labels = cluster_subspaces(tape, expression, counts["n_subspaces"])
    raw = expression.sum(1) * _cluster_sizes(tape, labels, counts["n_subspaces"]) / n.to_float()
    score = (raw - raw.min()) / (raw.max() - raw.min() + _MIN_MAX_EPS)
    is_scored = usable & is_result
    unscored = tape.op("Where", is_given & tape.op("Not", usable), 0, NO_SCORE)  # 0: all tokens are equal
    results = {
        "sharing_score": tape.op("Where", is_scored, score, 0.0),
        "labels": tape.op("Where", is_scored, labels, unscored),
    }
    return tape.function(domain, op_type, ["tokens"], results, attributes)


def _differ(tape: Tape, tokens: Value, largest: Value) -> Value:
    """Whether tokens are not all equal, by `va_export.anchor.scorable.are_equal`."""
    first = tape.op("Squeeze", tape.op("Slice", tokens, [0], [1], [0]), [0])
    apart = tape.op("Max", tokens.max(0) - first, first - tokens.min(0)).max()
    return apart > EQUAL_ROUNDINGS * ROUNDOFF["float32"] * largest


def _cluster_sizes(tape: Tape, labels: Value, n_subspaces: Value) -> Value:
    """[N]: how many tokens have each token's label."""
    member = labels.column().equals(tape.op("Range", 0, n_subspaces, 1).row()).to_float()
    return tape.op("Squeeze", member @ member.sum(0).column(), [1])
