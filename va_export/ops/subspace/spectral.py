"""Spectral clustering of a self-expression in standard operators, step by step as `va_export.anchor.spectral`."""

from __future__ import annotations

from functools import cache

import numpy as np

from va_export.ops.subspace.eigenvectors import block_size, leading_eigenvectors
from va_export.ops.subspace.polar import polar_factor
from va_export.ops.subspace.tape import Tape, Value

_MORE_VECTORS = 8
# Rows and columns beyond the tokens', so that the block of vectors may be larger than N, have an eigenvalue of their
# own below every other: those of a normalised affinity lie in [−1, 1].
_BELOW_ALL = -1.05
_MOST_ROTATIONS = 21  # scikit-learn's 20, and the first
_KEPT_DIRECTION = 1e-5
_MOST_TABLED = 16384  # tokens, 64 frames of 256; more start from the row of so many


def cluster_subspaces(tape: Tape, self_expression: Value, n_subspaces: Value) -> Value:
    """Labels [N] int64 of C [N, N]; all 0 where C is."""
    size = self_expression.abs()
    affinity = size + size.T
    embedding = _embedding(tape, affinity, n_subspaces)
    labels = _discretise(tape, embedding, n_subspaces)
    return tape.op("Where", affinity.max() > 0.0, labels, 0)


def _embedding(tape: Tape, affinity: Value, n_subspaces: Value) -> Value:
    """D^-½ times the leading eigenvectors of D^-½ A D^-½, [N, K]."""
    n = affinity.size(0)
    degree = affinity.sum(1)
    root = tape.op("Where", degree > 0.0, degree, 1.0).sqrt()
    normalised = affinity / root.column() / root.row()
    block = block_size(n_subspaces, _MORE_VECTORS)
    ends = tape.op("Unsqueeze", block, [0])
    padded = tape.op("Pad", normalised, tape.op("Concat", [0, 0], ends, ends, axis=0), 0.0)
    is_dummy = tape.op("Not", tape.op("Range", 0, padded.size(0), 1) < n).to_float().column()

    def operator(vectors: Value) -> Value:
        return padded @ vectors + is_dummy * (_BELOW_ALL * vectors)

    _, vectors = leading_eigenvectors(tape, operator, padded.size(0), n_subspaces, block, _BELOW_ALL, 1.0)
    of_tokens = tape.op("Slice", vectors, [0], affinity.size_vector(0), [0])
    return tape.op("Slice", of_tokens, [0], tape.op("Unsqueeze", n_subspaces, [0]), [1]) / root.column()


def _discretise(tape: Tape, embedding: Value, n_subspaces: Value) -> Value:
    """Yu and Shi's labels [N] of an embedding [N, K] ("Multiclass spectral clustering", ICCV 2003)."""
    sign = tape.op("Where", tape.op("Slice", embedding, [0], [1], [0]) > 0.0, -1.0, 1.0)
    vectors = sign * embedding / tape.op("Max", (embedding * embedding).sum(0).sqrt(), 1e-30)
    length = (vectors * vectors).sum(1).sqrt()
    vectors = vectors / tape.op("Where", length > 0.0, length, 1.0).column()
    rotation = _first_rotation(tape, vectors, n_subspaces)
    columns = tape.op("Range", 0, n_subspaces, 1)
    none = tape.op("ArgMax", vectors, axis=1, keepdims=0) - n_subspaces  # labels that no token has

    def step(_: Value, before: Value, rotation: Value) -> tuple[Value, ...]:
        labels = tape.op("ArgMax", vectors @ rotation, axis=1, keepdims=0)
        overlap = labels.column().equals(columns.row()).to_float().T @ vectors
        # A cluster that has lost all its tokens keeps its direction; LAPACK's choice there would be arbitrary.
        overlap = overlap + _KEPT_DIRECTION * rotation.T
        changed = tape.op("Not", labels.equals(before)).to_float().max() > 0.0
        return changed, labels, polar_factor(tape, overlap).T

    return tape.loop(_MOST_ROTATIONS, [none, rotation], step)[0]


def _first_rotation(tape: Tape, vectors: Value, n_subspaces: Value) -> Value:
    """[K, K]: as columns, rows of `vectors`, each the most nearly orthogonal to those before."""
    columns = tape.op("Range", 0, n_subspaces, 1).row()
    row = tape.op("Gather", tape.table(first_rows()), tape.op("Min", vectors.size(0), _MOST_TABLED), axis=0)
    first = tape.op("Gather", vectors, row, axis=0).column()
    rotation = first * columns.equals(0).to_float()

    def step(trip: Value, rotation: Value, last: Value, likeness: Value) -> tuple[Value, ...]:
        likeness = likeness + (vectors @ last).abs()
        row = tape.op("ArgMin", likeness, axis=0, keepdims=0)  # [1]; TensorRT's takes no vector
        chosen = tape.op("Gather", vectors, row, axis=0).T
        rotation = tape.op("Where", columns.equals(trip + 1), chosen, rotation)
        return tape.value(True), rotation, chosen, likeness

    likeness = 0.0 * (vectors @ first)
    return tape.loop(n_subspaces - 1, [rotation, first, likeness], step)[0]


@cache
def first_rows() -> tuple[int, ...]:
    """For 0, 1, … tokens the row that scikit-learn's discretisation starts from, as `anchor.spectral` draws it.

    That is RandomState(0).uniform(size=n), then .randint(n): the Mersenne Twister's words in order, two of them for a
    uniform number; then of the words that follow, cut to as many bits as n − 1 has, the first that is not above it.
    """
    stream = np.random.RandomState(0).randint(0, 1 << 32, size=2 * _MOST_TABLED + 256, dtype=np.uint32).tolist()
    rows = [0, 0]
    for n in range(2, _MOST_TABLED + 1):
        mask = (1 << (n - 1).bit_length()) - 1
        rows.append(next(word & mask for word in stream[2 * n : 2 * n + 256] if word & mask < n))
    return tuple(rows)
