"""A hub on this machine: interrupted downloads go on, a revision is pinned, offline means offline."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
COMMITS = {"main": "a" * 40, "v1": "b" * 40}
# huggingface_hub keeps whole chunks of an interrupted download, of 10 MB each; the golden checkpoint has 3.
EXPORT = """
import huggingface_hub.constants as constants
constants.DOWNLOAD_CHUNK_SIZE = 50_000
from va_export.cli.export import main
main()
"""


class Hub(ThreadingHTTPServer):
    """Serves one repository, whose revisions differ in one file, as the Hub's interface is documented.

    Attributes:
        requests: (method, path, range, authorization) of every request.
        break_after: bytes of the weights after which the connection ends, once.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.requests: list[tuple[str, str, str | None, str | None]] = []
        self.break_after: int | None = None


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server
        hub.requests.append((self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        if match := re.fullmatch(r"/api/models/owner/model(?:/revision/([^?]+))?(?:\?.*)?", self.path):
            revision = match.group(1) or "main"
            commit = COMMITS.get(revision, revision if revision in COMMITS.values() else "")
            if not commit:
                self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                return
            siblings = [{"rfilename": name} for name in hub.files]
            self._answer(200, json.dumps({"id": "owner/model", "sha": commit, "siblings": siblings}).encode(), {})
        elif re.fullmatch(r"/api/models/owner/model/tree/\w+\?.*", self.path):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in hub.files.items()
            ]
            self._answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        elif match := re.fullmatch(r"/owner/model/resolve/([^/]+)/(.+)", self.path):
            commit, name = COMMITS.get(match.group(1), match.group(1)), match.group(2)
            content = hub.files[name]
            self._answer(200, content, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'})
        else:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _answer(self, code: int, content: bytes, headers: dict[str, str]) -> None:
        start = 0
        if code == 200 and (match := re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")):
            start = int(match.group(1))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            code = 206
        body = content[start:]
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body)), "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.break_after is not None and len(content) > self.server.break_after:
            body, self.server.break_after, self.close_connection = body[: self.server.break_after], None, True
        self.wfile.write(body)


@pytest.fixture
def hub(golden_checkpoint: Path) -> Iterator[Hub]:
    names = ("config.json", "model.safetensors")
    server = Hub(
        {**{name: (golden_checkpoint / name).read_bytes() for name in names}, "pytorch_model.bin": b"\x80code"}
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run(hub: Hub, home: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", EXPORT, "--model", "owner/model", "--onnx-only", "--components", "embedding"]
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(home),
        "PYTHONPATH": str(REPOSITORY),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        **environment,
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [*command, *options], env={**kept, **settings}, capture_output=True, text=True, timeout=300, check=False
    )


def test_revision_resume_token_and_offline(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text("hf_secret")  # its own store, which `hf auth login` writes
    hub.break_after = 100_000
    done = run(hub, home, "--revision", "v1", "-o", str(tmp_path / "a"))
    assert done.returncode == 0, done.stderr
    ranges = [asked for method, path, asked, _ in hub.requests if method == "GET" and path.endswith(".safetensors")]
    assert ranges == [None, "bytes=100000-"]  # the rest, and not the whole again
    assert {token for _, path, _, token in hub.requests if "owner/model" in path} == {"Bearer hf_secret"}
    assert not [path for _, path, *_ in hub.requests if path.endswith(".bin")]
    model = json.loads((tmp_path / "a" / "manifest.json").read_text())["model"]
    assert (model["source"], model["revision"], model["commit"]) == ("owner/model", "v1", COMMITS["v1"])
    content = hub.files["model.safetensors"]
    assert model["checkpoint_files"]["model.safetensors"]["sha256"] == hashlib.sha256(content).hexdigest()

    hub.requests.clear()
    offline = run(hub, home, "--revision", "v1", "-o", str(tmp_path / "b"), "--dry-run", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0 and hub.requests == [], offline.stderr
    absent = run(hub, home, "--revision", "v2", "-o", str(tmp_path / "c"), "--dry-run", HF_HUB_OFFLINE="1")
    assert absent.returncode == 2 and "not in the local cache" in absent.stderr and hub.requests == []
    unknown = run(hub, home, "--revision", "v2", "-o", str(tmp_path / "c"), "--dry-run")
    assert unknown.returncode == 2 and "revision v2" in unknown.stderr and "Traceback" not in unknown.stderr
