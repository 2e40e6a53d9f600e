"""Networks as people have them: proxies, addresses, certificates, and a cache that holds a part. One message each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
CALL = """
import json, sys
from va_export.checkpoint.hub import HubUnreachable, download
for wanted in sys.argv[1:]:
    try:
        download("owner/model", weights=wanted == "weights")
        print(json.dumps([]))
    except HubUnreachable as error:
        print(json.dumps([error.what, error.where, error.fix]))
"""
NOWHERE = "http://127.0.0.1:1"


def asked(home: Path, environment: dict[str, str], *wanted: str) -> list[list[str]]:
    """What is told of each, the weights or the configuration alone, asked in one process: nothing where it is there."""
    dropped = ("HF_", "HTTP", "ALL_PROXY", "NO_PROXY", "SSL_")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(dropped)}
    done = subprocess.run(
        [sys.executable, "-c", CALL, *wanted],
        env={**kept, "HF_ENDPOINT": NOWHERE, "HF_HOME": str(home), "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("environment", "word"), [
    ({}, "HF_ENDPOINT"),
    ({"ALL_PROXY": "socks5://127.0.0.1:1"}, "socks"),
    ({"HTTP_PROXY": "foo://x"}, "HTTPS_PROXY"),
    ({"HTTP_PROXY": "http://127.0.0.1:99999"}, "HTTP_PROXY"),
    ({"https_proxy": "http://[::1"}, "https_proxy"),
    ({"NO_PROXY": "localhost,[::"}, "NO_PROXY"),
    ({"HF_HUB_DOWNLOAD_TIMEOUT": "soon"}, "HF_HUB_DOWNLOAD_TIMEOUT"),
    ({"NO_PROXY": "localhost,::1,10.0.0.0/8,*.example.org"}, "HF_ENDPOINT"),
    ({"HF_ENDPOINT": "nonsense"}, "HF_ENDPOINT"),
    ({"HF_ENDPOINT": "http://[bad"}, "HF_ENDPOINT"),
    ({"HF_ENDPOINT": "http://127.0.0.1:port"}, "HF_ENDPOINT"),
    ({"SSL_CERT_FILE": "/nowhere.pem"}, "SSL_CERT_FILE"),
    ({"HF_HUB_OFFLINE": "1"}, "path"),
], ids=str)  # fmt: skip
def test_a_network_that_leads_nowhere(tmp_path: Path, environment: dict[str, str], word: str) -> None:
    ((what, where, fix),) = asked(tmp_path, environment, "weights")
    assert what and where and word in fix


def test_a_certificate_that_is_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python's ssl says it, below two layers of libraries."""
    import ssl

    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    from va_export.checkpoint.hub import HubUnreachable, download

    def fails(*_: object, **__: object) -> str:
        try:
            raise ssl.SSLCertVerificationError(1, "self-signed certificate in certificate chain")
        except ssl.SSLError as error:
            raise LocalEntryNotFoundError("cannot find the requested files") from error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(HubUnreachable) as caught:
        download("owner/model")
    assert "certificate" in caught.value.what and "SSL_CERT_FILE" in str(caught.value.fix)


@pytest.mark.parametrize("files", [
    {"config.json": "{}"},
    {"config.json": "{}", "1.safetensors": "",
     "model.safetensors.index.json": '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}'},
    {"model.safetensors": ""},
], ids=["configuration", "one-shard", "weights"])  # fmt: skip
def test_a_cache_that_holds_a_part(tmp_path: Path, files: dict[str, str]) -> None:
    """As `--dry-run`, or a download that broke, leaves it: the layout of the cache is the Hub's, as documented."""
    commit = "a" * 40
    model = tmp_path / "hub" / "models--owner--model"
    snapshot = model / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    for name, content in files.items():
        (snapshot / name).write_text(content)
    told, planned = asked(tmp_path, {"HF_HUB_OFFLINE": "1"}, "weights", "configuration")
    for _, where, fix in (told, *asked(tmp_path, {}, "weights")):
        assert where == str(snapshot) and "HF_HUB_OFFLINE" in fix
    assert (planned == []) == ("config.json" in files)


def test_no_home_is_told_before_a_directory_is_made(tmp_path: Path) -> None:
    code = (
        "import os, pwd\n"
        "def absent(_): raise KeyError\n"
        "pwd.getpwuid = absent\n"
        "from va_export import VaExportError\n"
        "from va_export.checkpoint.hub import download\n"
        "try:\n    download('owner/model')\nexcept VaExportError as error:\n    print(error.where)\n"
    )
    gone = ("HOME", "HF_HOME", "XDG_CACHE_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in gone}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment, "PYTHONPATH": str(REPOSITORY)}, cwd=tmp_path,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout == "HF_HOME\n", done.stderr
    assert not list(tmp_path.iterdir())
