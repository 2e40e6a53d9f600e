"""Pictures out of a video file, as a player would show them, in bounded memory."""

from va_export.runtime.video.read import Frames, read_frames
from va_export.runtime.video.sample_clip import sample_clip
from va_export.runtime.video.sampling import SAMPLERS, check_sampling, is_by_rate, sample_frames

__all__ = ["SAMPLERS", "Frames", "check_sampling", "is_by_rate", "read_frames", "sample_clip", "sample_frames"]
