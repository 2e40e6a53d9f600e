"""A checkpoint from the Hugging Face Hub, or from its local cache."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from va_export.checkpoint.json_files import INDEX_FILE
from va_export.errors import VaExportError

# Everything a family may read; weights in other formats and remote code are left on the server.
DOWNLOAD_PATTERNS = ("*.safetensors", "*.json", "tokenizer.model", "merges.txt", "LICENSE*")


class HubUnreachable(VaExportError):
    """The Hub cannot be reached, and the local cache does not hold what was asked of it."""


def download(hub_id: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """Fetch a checkpoint from the Hugging Face Hub (or its local cache) and return the directory.

    Only safetensors, JSON and tokenizer files are taken: no pickles, no remote code.

    Args:
        weights: False leaves the safetensors files out, which is all but a few megabytes.

    Raises:
        HubUnreachable: no connection (the message says why), and nothing or only a part in the cache.
        VaExportError: unknown or gated repository or revision.
    """
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ValueError as error:  # it reads its variables when it is imported
        raise _unreachable(hub_id, error, "HF_ENDPOINT") from error
    if str(constants.HF_HUB_CACHE).startswith("~"):
        raise VaExportError(
            f"the Hub's cache would be made at {constants.HF_HUB_CACHE}: there is no home directory",
            where="HF_HOME",
            fix="set HF_HOME (or HOME) to a directory",
        )
    ignored = None if weights else ["*.safetensors"]
    try:
        directory = Path(
            snapshot_download(
                hub_id, revision=revision, allow_patterns=list(DOWNLOAD_PATTERNS), ignore_patterns=ignored
            )
        )
    except (HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise VaExportError(
            f"the Hub refused {hub_id} at revision {revision or 'main'}: {reason}",
            where=hub_id,
            fix="check the name and revision, and log in with `hf auth login` if the repository is gated",
        ) from error
    except (OSError, ValueError, ImportError, RuntimeError) as error:  # no network, no such file, proxies, addresses
        raise _unreachable(hub_id, error, constants.ENDPOINT) from error
    except Exception as error:  # httpx has exceptions of its own, and is not ours to import
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpcore"):
            raise
        raise _unreachable(hub_id, error, constants.ENDPOINT) from error
    if missing := _missing(directory, weights):
        raise HubUnreachable(
            f"the local cache holds only a part of {hub_id}: {missing} not there, and the Hub gave no more",
            where=directory,
            fix="connect to the network once (without HF_HUB_OFFLINE), or give the path of a checkpoint directory",
        )
    return directory


def _missing(directory: Path, weights: bool) -> str:
    """What a checkpoint needs and a folder of the cache lacks, in words; empty if it is whole, as far as it tells."""
    if not (directory / "config.json").is_file():
        return "config.json is"
    if not weights:
        return ""
    try:
        shards = set(json.loads((directory / INDEX_FILE).read_text(encoding="utf-8-sig"))["weight_map"].values())
        absent = sorted(name for name in shards if not (directory / name).is_file())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # none, or one that `Checkpoint.open` refuses
        return "" if any(directory.glob("*.safetensors")) or any(directory.glob("*.bin")) else "the weights are"
    return f"{', '.join(absent[:3])} of {len(shards)} shards are" if absent else ""


def _unreachable(hub_id: str, error: BaseException, endpoint: str) -> HubUnreachable:
    causes = list(_causes(error))
    deepest = causes[-1]
    reason = (str(deepest).strip() or type(deepest).__name__).splitlines()[0]
    what = f"the Hub cannot be reached and {hub_id} is not in the local cache: {reason}"
    fix = "connect to the network once, or give the path of a checkpoint directory; check HF_ENDPOINT, HTTPS_PROXY"
    if any(isinstance(cause, ssl.SSLError) or "CERTIFICATE_VERIFY" in str(cause) for cause in causes):
        what = f"the Hub's certificate was not accepted: {reason}"
        fix = "set SSL_CERT_FILE to the certificates of your network"
    elif any(isinstance(cause, ImportError) for cause in causes):
        fix = "pip install 'httpx[socks]' for a SOCKS proxy, or unset ALL_PROXY"
    elif type(deepest) is FileNotFoundError:
        fix = "check that the file of SSL_CERT_FILE is there"
    elif variable := _malformed_variable(reason):
        endpoint, fix = variable, f"correct {variable}, or unset it"
    return HubUnreachable(what, where=endpoint, fix=fix)


def _malformed_variable(reason: str) -> str | None:
    """The environment variable that the error is about; its value is not told, for it may hold a password."""
    for name, value in sorted(os.environ.items()):
        is_proxy = name.upper() in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
        if is_proxy and not all(_is_address(one.strip()) for one in value.split(",")):
            return name
        if name.startswith("HF_") and f"'{value}'" in reason:
            return name
    return None


def _is_address(value: str) -> bool:
    """Whether a proxy, or a host that is reached without one, can be taken apart."""
    with contextlib.suppress(ValueError):
        port = urlsplit(value if "//" in value else f"//{value}").port
        return port is None or port > 0
    return not {"[", "/"} & {*value} and value.count(":") > 1  # an IPv6 address, which NO_PROXY may list bare


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and what led to it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
