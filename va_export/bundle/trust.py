"""Which code of a bundle may be executed here: SECURITY.md, kept to.

TensorRT executes two kinds of files of a bundle: the plugin library, and engines, which NVIDIA's documentation calls
executable artifacts to be loaded from trusted sources only. Hashes inside a bundle vouch for nothing. A file is
executed where something outside of the bundle vouches for its content: the installed package, the record of what
exports on this machine wrote, or the user.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from va_export.bundle.held import HeldFiles
from va_export.bundle.manifest import Manifest, sha256
from va_export.errors import VaExportError
from va_export.native import plugin_library

TRUST_VARIABLE = "VA_EXPORT_TRUST_PLUGINS"
TRUST_OPTION = "--trust-plugins"
_EXECUTING = ("tensorrt", "tensorrt-rtx")
_KNOWN_FILE = "known_libraries.txt"
_RECORD_FILE = "own-code.txt"
_OTHERS_WRITE = 0o002
_LOG = logging.getLogger("va_export.trust")


@dataclass(frozen=True)
class Code:
    """A file of a bundle whose content a backend executes.

    Attributes:
        name: in the manifest.
        sha256: of its content; None where the user's word made reading it needless.
        voucher: what vouches for it, in words; None if nothing does.
        installed: the package's own library, which is loaded in the place of a bundle's that is the same.
    """

    name: str
    sha256: str | None
    voucher: str | None
    installed: Path | None = None

    def __str__(self) -> str:
        digest = "not read" if self.sha256 is None else self.sha256
        return f"{self.name} (SHA-256 {digest}): {self.voucher or 'nothing vouches for it'}"


@dataclass(frozen=True)
class AdmittedCode:
    """What a backend may execute of a bundle.

    Attributes:
        library: the plugin library, None where the bundle's attention needs none.
        engines: the names of the engines.
        held: whose bytes they are.
    """

    library: Path | None
    engines: frozenset[str]
    held: HeldFiles

    def engine(self, name: str) -> Path:
        """The path of an engine that was admitted: the very file that was judged."""
        if name not in self.engines:
            raise VaExportError(f"{name} was not admitted for execution", where=self.held.directory / name)
        return self.held.path(name)

    def check_unchanged(self) -> None:
        """Check that no engine was edited while it was judged and read.

        Raises:
            VaExportError: one was.
        """
        for name in self.engines:
            self.held.check(name)


def judge_code(manifest: Manifest, backend: str, trust_plugins: bool = False) -> tuple[Code, ...]:
    """Every file of a bundle that a backend would execute, and what vouches for it; empty for backends that execute
    none. Nothing is executed for it; engines are read whole, unless the user trusts them.

    Raises:
        VaExportError: the manifest does not list a file, or VA_EXPORT_TRUST_PLUGINS is neither 0 nor 1.
    """
    if backend not in _EXECUTING:
        return ()
    consent, recorded = _consent(trust_plugins), _recorded()
    library, engines = _library_of(manifest), _engines_of(manifest, backend)
    if consent is None:
        with ThreadPoolExecutor() as pool:  # hashing does not hold the interpreter's lock
            list(pool.map(manifest.held.sha256, engines))
    codes = [] if library is None else [_judge_library(manifest, library, recorded, consent)]
    for name in engines:
        digest = manifest.held.known_sha256(name)
        codes.append(Code(name, digest, recorded.get(digest or "", consent)))
    return tuple(codes)


def admit_code(manifest: Manifest, backend: str, trust_plugins: bool = False) -> AdmittedCode:
    """Allow a backend to execute what is vouched for.

    Raises:
        VaExportError: something is not, with its path and SHA-256, and what the user can do.
    """
    codes = judge_code(manifest, backend, trust_plugins)
    if refused := [code for code in codes if code.voucher is None]:
        raise VaExportError(
            "this bundle has code to execute for which nothing on this machine vouches:\n    "
            + "\n    ".join(f"{code.name} (SHA-256 {code.sha256})" for code in refused),
            where=manifest.path(refused[0].name),
            fix=f"if you trust whoever made the bundle, give {TRUST_OPTION} (Bundle.open(…, trust_plugins=True); in a"
            f" container {TRUST_VARIABLE}=1); else export it here, or use --backend onnxruntime, which executes none"
            " of it",
        )
    library = None
    for code in codes:
        if code.name == _library_of(manifest):
            library = code.installed or _sealed_copy(manifest, code)
    engines = frozenset(_engines_of(manifest, backend))
    return AdmittedCode(library, engines, manifest.held)


def remember_own_code(manifest: Manifest, place: Path) -> None:
    """Note in the user's record that an export on this machine wrote the code of this bundle.

    Args:
        place: where the bundle goes, for people who read the record.
    """
    names = [_library_of(manifest), *(name for flavor in _EXECUTING for name in _engines_of(manifest, flavor))]
    known = _recorded()
    digests = {manifest.data.files[name].sha256: name for name in names if name is not None}
    lines = [f"{digest}  {place / name}\n" for digest, name in digests.items() if digest not in known]
    path = _record()
    if not lines or path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        record = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(record, "ab", buffering=0) as file:
            file.write("".join(lines).encode(errors="backslashreplace"))  # one write: exports may end at the same time
    except OSError as error:
        _LOG.warning("what was built is not noted in %s, so it will need %s: %s", path, TRUST_OPTION, error)


def _library_of(manifest: Manifest) -> str | None:
    """The plugin library that a bundle's engines need."""
    plugin = manifest.data.plugin
    if not plugin or manifest.data.attention != "plugin":
        return None
    name = str(plugin.get("library"))
    manifest.path(name)
    return name


def _engines_of(manifest: Manifest, flavor: str) -> list[str]:
    engines = (entry.engines.get(flavor) for entry in manifest.data.components.values())
    names = sorted({engine.file for engine in engines if engine})
    for name in names:
        manifest.path(name)
    return names


def _judge_library(manifest: Manifest, name: str, recorded: dict[str, str], consent: str | None) -> Code:
    try:
        installed = plugin_library()
    except VaExportError:  # installed without one
        installed = None
    asked = manifest.data.files[name].sha256
    if installed is not None and sha256(installed) == asked:
        return Code(name, asked, f"the installed library is the same, and is loaded: {installed}", installed)
    digest = manifest.held.sha256(name)
    return Code(name, digest, _known_libraries().get(digest) or recorded.get(digest) or consent)


def _consent(trust_plugins: bool) -> str | None:
    value = os.environ.get(TRUST_VARIABLE, "")
    if value not in ("", "0", "1"):
        raise VaExportError(f"{TRUST_VARIABLE} is {value!r}", where=TRUST_VARIABLE, fix="set it to 0 or 1")
    if trust_plugins:
        return f"the user does ({TRUST_OPTION})"
    return f"the user does ({TRUST_VARIABLE}=1)" if value == "1" else None


@functools.cache
def _known_libraries() -> dict[str, str]:
    """SHA-256 → words."""
    text = (Path(__file__).parents[1] / "native" / _KNOWN_FILE).read_text(encoding="utf-8")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {digest: f"the library of va-export {release}" for digest, release in lines}


def _record() -> Path | None:
    """Where exports note what they wrote: in the user's cache directory, None where there is none."""
    from va_export.runtime.user_cache import resolve_cache

    try:
        return resolve_cache("", "", _RECORD_FILE)
    except (RuntimeError, VaExportError):  # no home directory
        return None


def _recorded() -> dict[str, str]:
    """SHA-256 → words, for what exports of this user wrote. A record that others can write counts for nothing."""
    path = _record()
    if path is None:
        return {}
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & _OTHERS_WRITE:
                _LOG.warning("%s is not counted: others can write it", path)
                return {}
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    return {line.partition("  ")[0]: f"an export here wrote it: {line.partition('  ')[2]}" for line in lines}


_SEALED: dict[str, Path] = {}


def _sealed_copy(manifest: Manifest, code: Code) -> Path:
    """A library in memory that nobody can change any more, with the bytes that were judged.

    Its descriptor is never closed: dlopen knows a library by its path, and would take a later one under the same number
    for this one.
    """
    assert code.sha256 is not None
    if code.sha256 not in _SEALED:
        content = manifest.held.read(code.name)
        if hashlib.sha256(content).hexdigest() != code.sha256:
            raise VaExportError(
                f"{code.name} was changed while it was being opened",
                where=manifest.path(code.name),
                fix="do not use this bundle",
            )
        descriptor = os.memfd_create(str(manifest.path(code.name))[-200:], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        _SEALED[code.sha256] = Path(f"/proc/self/fd/{descriptor}")
    return _SEALED[code.sha256]
