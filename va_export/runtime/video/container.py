"""Open a video file and choose the stream that is the film."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from va_export.errors import VaExportError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# 8192 x 8192; 8K film has half of that. A file of a few bytes can ask for more memory than a machine has.
MOST_PIXELS = 1 << 26
# These name other files, which may be anything on this machine.
_PLAYLISTS = {"hls", "concat", "dash", "imf", "sdp", "rtsp"}
# Common encryption of MP4 (ISO/IEC 23001-7): the box that names its scheme.
_ENCRYPTED = re.compile(rb"schm.{4}(cenc|cens|cbc1|cbcs)", re.DOTALL)
_LOOKED_AT, _TEXT_SHOWN = 1 << 20, 256
_GET_IT = "download it first, and give the file"
_NO_FILES = {
    stat.S_ISDIR: ("a directory", "give one video file in it"),
    stat.S_ISFIFO: ("a pipe, which can be read only once", "save what comes through it to a file, and give that"),
    stat.S_ISSOCK: ("a socket", "save what comes through it to a file, and give that"),
    stat.S_ISCHR: ("a device", "record from it to a file, and give that"),
    stat.S_ISBLK: ("a device", "give a video file on it"),
}


def check_file(path: Path | str) -> Path:
    """The path, if a file that may be read lies there.

    Raises:
        VaExportError: it does not; says what lies there instead.
    """
    text = os.fspath(path)
    try:
        mode = Path(text).stat().st_mode
        for is_kind, (kind, fix) in _NO_FILES.items():
            if is_kind(mode):
                raise VaExportError(f"this is {kind}, not a video file", where=text, fix=fix)
        with Path(text).open("rb") as file:
            if not file.read(1):
                raise VaExportError("the video file is empty", where=text, fix="get the file again")
    except (FileNotFoundError, NotADirectoryError):
        raise _absent(text) from None
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise VaExportError(
            f"the video file cannot be opened: {reason}", where=ascii(text), fix="check the path and its permissions"
        ) from None
    return Path(path)


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its film: of the streams that are no cover picture and can be decoded the one that is marked as
    default, then has the most pixels, then comes first.

    Raises:
        VaExportError: not a video, none that FFmpeg decodes, or frames that are too large.
    """
    import av

    # The decoder counts what it pads frames with. And clip%03d.png is one file's name.
    options = {"max_pixels": str(2 * MOST_PIXELS), "pattern_type": "none"}
    try:
        # file: keeps a colon, or a leading dash, from meaning something.
        container = av.open(f"file:{path.absolute()}", options=options, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise unreadable(path, error) from error
    with container:
        if set(container.format.name.split(",")) & _PLAYLISTS:
            raise VaExportError(
                f"this is a list of files ({container.format.name}), not a video", where=path, fix=_GET_IT
            )
        stream = _film(path, container)
        context = stream.codec_context
        check_pixels(path, context.width, context.height)
        context.options = {"max_pixels": options["max_pixels"]}
        yield container, stream


def films(container: InputContainer) -> list[VideoStream]:
    """The video streams that are no cover pictures, thumbnails or tiles of another picture, and that FFmpeg decodes."""
    from av.stream import Disposition

    stills = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent
    return [
        stream
        for stream in container.streams.video
        if not stream.disposition & stills and stream.codec_context is not None
    ]


def check_pixels(path: Path, width: int, height: int) -> None:
    """Refuse frames above `MOST_PIXELS`.

    Raises:
        VaExportError: they are.
    """
    if width * height > MOST_PIXELS:
        raise VaExportError(
            f"frames of {width} x {height} are larger than the {MOST_PIXELS >> 20} megapixels that are read",
            where=path,
            fix="scale the clip down: ffmpeg -i CLIP -vf scale=1920:-2 NEW.mp4",
        )


def unreadable(path: Path, error: Exception | str) -> VaExportError:
    """The error for a file that FFmpeg cannot open or read; says so where the index at its end is missing, and where
    it is something else than a video."""
    if told := told_by_its_bytes(path):
        return VaExportError(told[0], where=path, fix=told[1])
    if _lacks_index(path):
        return VaExportError(
            "the file lacks its index (moov), which comes last in it: a download or recording was cut short",
            where=path,
            fix="get the whole file; a recording can often be repaired with untrunc, beside a good one of its camera",
        )
    if getattr(error, "errno", None) == errno.EIO or isinstance(error, EOFError):  # so FFmpeg has it
        return VaExportError(
            f"the video cannot be read: the file ends ({path.stat().st_size} bytes) before its first frame",
            where=path,
            fix="get the whole file: a download or recording was cut short",
        )
    return VaExportError(
        f"the video cannot be read: {getattr(error, 'strerror', None) or error}",
        where=path,
        fix="give a video file that FFmpeg decodes",
    )


def _film(path: Path, container: InputContainer) -> VideoStream:
    from av.stream import Disposition

    def rank(stream: VideoStream) -> tuple[bool, int]:
        context = stream.codec_context
        return bool(stream.disposition & Disposition.default), context.width * context.height

    candidates = films(container)
    if candidates:
        return max(candidates, key=rank)
    unknown = any(stream.codec_context is None for stream in container.streams.video)
    if unknown:
        what, fix = "the video's codec is not one that FFmpeg decodes", "convert the clip to H.264"
    elif container.streams.video:
        what, fix = "the file has no film, only a cover or parts of a picture", "give a video file, or a PNG or JPEG"
    elif not container.streams and _lacks_index(path):
        raise unreadable(path, "")
    else:
        what, fix = "the file has no video stream", "give a video file"
    raise VaExportError(what, where=path, fix=fix)


def _absent(text: str) -> VaExportError:
    # pathlib makes http:/x of http://x.
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+", text)
    if scheme is not None and scheme[1].lower() == "file":
        return VaExportError("this is a file's URL, not its path", where=text, fix="leave file:// out")
    if scheme is not None:
        return VaExportError(f"this is a URL ({scheme[1]}); videos are read from files", where=text, fix=_GET_IT)
    if text == "-":
        return VaExportError(
            "videos are not read from standard input", where=text, fix="save it to a file, and give that"
        )
    if Path(text).is_symlink():
        return VaExportError(f"the link leads nowhere: {Path(text).readlink()}", where=text, fix="check the link")
    return VaExportError("there is no such video file", where=text, fix="check the path")


def told_by_its_bytes(path: Path) -> tuple[str, str] | None:
    """What a file is that people take for a video, and what to do; None if its bytes do not tell."""
    with path.open("rb") as file:
        head = file.read(_LOOKED_AT)
        file.seek(max(len(head), path.stat().st_size - _LOOKED_AT))
        tail = file.read(_LOOKED_AT)
    if not any(head):
        return (
            f"the file's first {len(head)} bytes are all zero: room was made for it, and it did not arrive",
            "get the file again",
        )
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and head[20] & 2:
        return "this is an animated WebP, which FFmpeg does not decode", "convert it to GIF or MP4"
    if _ENCRYPTED.search(head) or _ENCRYPTED.search(tail):
        return "the clip is encrypted (DRM)", "give one without copy protection"
    with contextlib.suppress(UnicodeDecodeError):
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head[:_TEXT_SHOWN]).strip()
        if text and all(letter.isprintable() or letter.isspace() for letter in text):
            return (
                f"this is text, not a video; it begins with {text.splitlines()[0][:60]!r}",
                "get the clip itself: a page that asks to log in, a list of files, or a pointer of Git LFS"
                " (git lfs pull) has its place",
            )
    return None


def _lacks_index(path: Path) -> bool:
    """Whether it is an MP4 or QuickTime file that ends before its moov does."""
    size = path.stat().st_size
    position, boxes, has_index = 0, 0, False
    with path.open("rb") as file:
        while position < size:
            file.seek(position)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if length == 1:  # a length of 64 bits follows
                length = int.from_bytes(head[8:16], "big")
            if boxes == 0 and kind != b"ftyp":
                return False
            boxes += 1
            if length < 8 or boxes > 1000:  # 0: to the end of the file
                break
            position += length
            has_index |= kind == b"moov" and position <= size
    return not has_index
