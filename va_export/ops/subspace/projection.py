"""Scale and principal components of tokens in standard operators, as `va_export.anchor.projection` has them."""

from __future__ import annotations

from va_export.ops.subspace.eigenvectors import block_size, leading_eigenvectors
from va_export.ops.subspace.tape import Tape, Value

_MORE_COMPONENTS = 16


def project_to_principal_components(tape: Tape, tokens: Value, rank: Value) -> Value:
    """Scores [N, rank] of tokens [N, D] on their principal components.

    The N-sized Gram matrix of the centred tokens is applied and never formed; dummy rows let the block be larger than
    N. Components are told apart where their variances differ by more than about 1e-5 of the first's: float32's limit.
    """
    count = tokens.size(0).to_float()
    centred = tokens - tape.op("Unsqueeze", tokens.sum(0) / count, [0])
    block = block_size(rank, _MORE_COMPONENTS)
    rows = tape.op("Concat", [0, 0], tape.op("Unsqueeze", block, [0]), [0], axis=0)
    padded = tape.op("Pad", centred, rows, 0.0)

    def gram(vectors: Value) -> Value:
        return padded @ (padded.T @ vectors)

    trace = (centred * centred).sum(1).sum(0)
    values, vectors = leading_eigenvectors(tape, gram, padded.size(0), rank, block, 0.0, trace)
    scores = vectors * tape.op("Max", values, 0.0).sqrt()
    kept = tape.op("Slice", scores, [0], tokens.size_vector(0), [0])
    return tape.op("Slice", kept, [0], tape.op("Unsqueeze", rank, [0]), [1])
