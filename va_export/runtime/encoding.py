"""What a prompt is about, before the decoder: visual tokens, and their score."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from msgspec.structs import asdict

from va_export.anchor.iterations_left import OnProgress
from va_export.bundle.manifest import Manifest
from va_export.errors import VaExportError
from va_export.runtime import arguments
from va_export.runtime.array_cache import ArrayCache
from va_export.runtime.backends.backend import Backend, Float32, has_score_graph
from va_export.runtime.backends.decoder_parts import embedding_width
from va_export.runtime.prefix import digest_of
from va_export.runtime.processing import Prepared
from va_export.runtime.score_cache import ScoreCache, Scored, scored_from
from va_export.runtime.scoring import Scorer, score_visual_tokens
from va_export.runtime.stage_clock import StageClock
from va_export.runtime.turn import Turn
from va_export.settings import ScoreSettings


@dataclass(frozen=True)
class Seen:
    """What the vision component made of a prompt's frames.

    Attributes:
        visual: (N, width) visual tokens; None without frames.
        scored: of those that are scored; None where no score was asked for.
    """

    visual: Float32 | None
    scored: Scored | None

    @cached_property
    def digest(self) -> str:
        """Names the visual tokens by their values."""
        return digest_of({} if self.visual is None else {"visual_tokens": self.visual})


@dataclass
class Encoder:
    """Runs a bundle's vision component and scores what comes out.

    Attributes:
        turn: taken for it.
        bundle: names the components and what runs them.
        files: where what was seen is kept, by the content of the frames; None: nowhere.
        on_score: as `score_visual_tokens` calls it.
    """

    manifest: Manifest
    backend: Backend
    scorer: Scorer
    settings: ScoreSettings
    score_cache: ScoreCache | None
    turn: Turn
    bundle: str
    files: ArrayCache | None = None
    on_score: OnProgress | None = None

    def see(self, prepared: Prepared, *, is_scored: bool, clock: StageClock) -> Seen:
        """Visual tokens of a prompt's frames, and their score where that is asked for.

        Raises:
            VaExportError: inputs beyond the component's ranges, visual tokens that are none, or that have no score.
        """
        if not prepared.vision_inputs:
            return Seen(None, None)
        with self.turn, self.manifest.held.unchanged():
            with clock("vision"):
                visual = self._visual_tokens(prepared)
            if not is_scored:
                return Seen(visual, None)
            with clock("score"):
                grapher = self.backend if self.scorer == "graph" else None
                tokens = visual[prepared.scored_rows, : self.manifest.data.model.text.hidden_size]
                scored = score_visual_tokens(
                    tokens, self.settings, cache=self.score_cache, backend=grapher, on_progress=self.on_score
                )
                return Seen(visual, scored)

    def recall(self, prepared: Prepared, *, is_scored: bool, clock: StageClock) -> Seen:
        """`see`, unless it is known from another time; frames are known by their content."""
        if self.files is None or not prepared.vision_inputs:
            return self.see(prepared, is_scored=is_scored, clock=clock)
        how = f"{self.scorer} {asdict(self.settings)}" if is_scored else "unscored"
        given = digest_of({**prepared.vision_inputs, "scored_rows": prepared.scored_rows})
        key = hashlib.sha256(f"{self.bundle}\0{how}\0{given}".encode()).hexdigest()
        width, count = embedding_width(self.manifest), len(prepared.scored_rows)
        n_scored = int(prepared.scored_rows.sum())
        found = self.files.load(key, most_bytes=4 * count * width + 12 * n_scored + 8)
        if found is not None:
            visual, scored = found.get("visual_tokens"), scored_from(found, n_scored) if is_scored else None
            is_whole = visual is not None and visual.shape == (count, width) and visual.dtype == np.float32
            if visual is not None and is_whole and (scored is not None) == is_scored:
                return Seen(arguments.finite_tokens(visual, self.manifest.data.precision), scored)
        seen = self.see(prepared, is_scored=is_scored, clock=clock)
        assert seen.visual is not None
        # What used up its iterations may not have converged: the warning of that must come again.
        if seen.scored is None or seen.scored.iterations < self.settings.max_iter:
            scores = {} if seen.scored is None else seen.scored.arrays()
            self.files.store(key, {"visual_tokens": seen.visual, **scores})
        return seen

    def _visual_tokens(self, prepared: Prepared) -> Float32:
        """One row for each placeholder, (N, width); features for the decoder's first layers stand behind them."""
        arguments.check_ranges(self.manifest.component("vision"), prepared.vision_inputs)
        visual = self.backend.run("vision", prepared.vision_inputs)["visual_tokens"]
        expected = int(prepared.is_visual.sum())
        if len(visual) != expected:
            raise VaExportError(
                f"the vision component gave {len(visual)} visual tokens, the prompt has {expected} placeholders",
                where=self.manifest.directory,
                fix="processing.json and the graphs do not belong together: copy or export the bundle again",
            )
        return arguments.finite_tokens(visual, self.manifest.data.precision)


def choose_scorer(manifest: Manifest, backend: Backend, asked: Scorer | None) -> Scorer:
    """As asked; by default the engine on a GPU where its kernels passed the self-test, and on a CPU the host's solver,
    which is compiled for it.

    Raises:
        VaExportError: kernels are asked for that have not passed.
    """
    if asked == "graph" and not backend.has_proven_score:
        raise VaExportError(
            f"the score's kernels have not passed the self-test here: {'; '.join(backend.kernels)}",
            where="score",
            fix="score on the host; VA_EXPORT_SELFTEST=again tests once more",
        )
    on_gpu = backend.name in ("tensorrt", "tensorrt-rtx") and has_score_graph(manifest, backend.name)
    return asked or ("graph" if on_gpu and backend.has_proven_score else "host")
