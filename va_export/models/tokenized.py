"""What the families do alike with a checkpoint's tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from va_export.checkpoint.files import Checkpoint
    from va_export.models.checkpoint_tokenizer import CheckpointTokenizer, TokenizerLayout


class TokenizedFamily:
    """A family whose checkpoints keep a tokenizer as `tokenizer_layout` says."""

    def open_settings(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """See `ModelFamily.open_settings`."""
        return ()

    def tokenizer_layout(self, config: Mapping[str, Any]) -> TokenizerLayout:
        """How a checkpoint with that config.json keeps it."""
        raise NotImplementedError

    def tokenizer(self, checkpoint: Checkpoint) -> CheckpointTokenizer:
        """The checkpoint's tokenizer; what of its files is not followed is noted with the checkpoint."""
        from va_export.models.checkpoint_tokenizer import read_tokenizer

        tokens = read_tokenizer(checkpoint.directory, self.tokenizer_layout(checkpoint.config))
        for text in tokens.notes:
            checkpoint.note(text)
        return tokens

    def write_tokenizer(self, checkpoint: Checkpoint, directory: Path) -> Path | None:
        """See `ModelFamily.write_tokenizer`."""
        from va_export.models.checkpoint_tokenizer import write_tokenizer

        return write_tokenizer(checkpoint.directory, self.tokenizer_layout(checkpoint.config), directory)
