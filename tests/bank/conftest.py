"""A Hub on this machine: what `huggingface_hub` asks of the real one, for repositories made in a test.

`hub` is a running server; `hub.add("owner/name", files, ...)` makes a repository. The client finds it as it
would find the real one: through its endpoint.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

PAGE = 2  # repositories of a page of search results
LARGE = (".safetensors", ".bin")  # kept as LFS files, with a sha256


@dataclass
class Repository:
    """Files by name, what the card says, and how its files go wrong."""

    files: dict[str, bytes]
    card: dict[str, Any]
    base_model: str
    downloads: int
    gated: bool
    faults: dict[str, str]

    @property
    def commit(self) -> str:
        """Changes with the files."""
        names = sorted((name, hashlib.sha1(data).hexdigest()) for name, data in self.files.items())
        return hashlib.sha1(json.dumps(names).encode()).hexdigest()


@dataclass
class HubServer:
    """The repositories, and every request that came."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    busy: list[int] = field(default_factory=list)  # status codes of the next answers
    delay_s: float = 0.0

    def add(
        self,
        name: str,
        files: dict[str, bytes],
        *,
        card: dict[str, Any] | None = None,
        base_model: str = "tiny/base",
        downloads: int = 0,
        gated: bool = False,
        faults: dict[str, str] | None = None,
    ) -> Repository:
        """Make a repository; a fault of a file is `cut` (once), `short`, `changed` or `gone`."""
        made = Repository(files, card or {}, base_model, downloads, gated, faults or {})
        self.repositories[name] = made
        return made

    def fetched(self, name: str = "") -> list[str]:
        """Which files were downloaded, of all repositories or of one."""
        paths = [request.removeprefix("GET ") for request in self.requests if request.startswith("GET ")]
        return [
            path.rpartition("/")[2] for path in paths if path.startswith(f"/{name}") and "/resolve/" in path
        ]

    def info(self, name: str, *, blobs: bool) -> dict[str, Any]:
        """What the Hub says of a repository."""
        made = self.repositories[name]
        return {
            "id": name,
            "sha": made.commit,
            "cardData": made.card,
            "gated": "manual" if made.gated else False,
            "tags": [f"base_model:adapter:{made.base_model}"],
            "siblings": [_sibling(file, data, blobs) for file, data in made.files.items()],
        }


def _sibling(name: str, data: bytes, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": name}
    blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    sibling = {"rfilename": name, "size": len(data), "blobId": blob}
    if name.endswith(LARGE):
        sha256 = hashlib.sha256(data).hexdigest()
        sibling["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 134}
    return sibling


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        self.hub.requests.append(f"{self.command} {path}")
        time.sleep(self.hub.delay_s)
        if self.hub.busy:
            self._send(self.hub.busy.pop(0), b"", {"Retry-After": "0"})
        elif path == "/api/models":
            self._search(query)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(match[1], match[2], blobs="blobs" in query)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        else:
            self._send(404, b"")

    def _search(self, query: dict[str, list[str]]) -> None:
        wanted = query.get("filter", [])
        part = query.get("search", [""])[0]
        found = [
            name
            for name, made in sorted(self.hub.repositories.items(), key=lambda item: -item[1].downloads)
            if part in name and all(tag in self.hub.info(name, blobs=False)["tags"] for tag in wanted)
        ]
        start = int(query.get("cursor", ["0"])[0])
        page = [self.hub.info(name, blobs=False) for name in found[start : start + PAGE]]
        more = f"{self.path.partition('&cursor')[0]}&cursor={start + PAGE}"
        link = {"Link": f'<{self.hub.address}{more}>; rel="next"'} if start + PAGE < len(found) else {}
        self._send(200, json.dumps(page).encode(), link)

    def _info(self, name: str, revision: str | None, *, blobs: bool) -> None:
        made = self.hub.repositories.get(name)
        if made is None:
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in (None, "main", made.commit):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            self._send(200, json.dumps(self.hub.info(name, blobs=blobs)).encode())

    def _file(self, name: str, revision: str, file: str) -> None:
        made = self.hub.repositories[name]
        if made.gated:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        data, fault = made.files.get(file), made.faults.get(file)
        if data is None or fault == "gone" or revision != made.commit:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": made.commit}
        if self.command == "GET":
            if fault == "short":
                data = data[: len(data) // 2]
            if fault == "changed":
                data = bytes(len(data))
            if fault == "cut":
                del made.faults[file]
                return self._send(200, data, headers, sent=len(data) // 2)
            if start := re.match(r"bytes=(\d+)-", self.headers.get("Range", "")):
                first = int(start[1])
                headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
                return self._send(206, data[first:], headers)
        self._send(200, data, headers)
        return None

    def _send(
        self, status: int, data: bytes, headers: dict[str, str] | None = None, sent: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:sent])
        if sent is not None:
            self.close_connection = True


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A running server that the Hub client of this process asks; the cache folder is empty."""
    served = HubServer()
    handler = type("Handler", (_Handler,), {"hub": served})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        served.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        use_hub(monkeypatch, served.address)
        monkeypatch.setenv("KSHOT_HOME", str(tmp_path / "home"))
        yield served
        close_session()
        server.shutdown()
        thread.join()


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Do what HF_ENDPOINT and no HF_HUB_OFFLINE do, which the client reads when it is imported."""
    close_session()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    files = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and every connection to the Hub is refused."""
    return lambda: use_hub(monkeypatch, "http://127.0.0.1:1")


@pytest.fixture
def adapter_files(lora_folder: Callable[..., Path]) -> Callable[..., dict[str, bytes]]:
    """Makes the files of an adapter as they are on the Hub; arguments as of `lora_folder`."""

    def files(name: str, seed: int = 1, **settings: Any) -> dict[str, bytes]:
        folder = lora_folder(f"files-{name}", seed, **settings)
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    return files
