"""A server on loopback that speaks as much of the Hugging Face hub's protocol as a small repository takes."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

COMMIT = "c" * 40


class _Handler(BaseHTTPRequestHandler):
    folder: Path
    asked: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        path = urlparse(self.path).path
        self.asked.append(f"POST {path}")
        here = f"http://{self.headers['Host']}"
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.asked.append(asked.get("visibility", "private" if asked.get("private") else "public"))
            self._json({"url": f"{here}/{asked['organization']}/{asked['name']}"})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            self._json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    (self.folder / line["value"]["path"]).write_bytes(content)
            self._json({"commitUrl": f"{here}/{path.split('/')[3]}/x/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._json({"error": path}, 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        self.asked.append(f"{self.command} {path}")
        names = sorted(p.name for p in self.folder.iterdir())
        if "/resolve/" in path and (name := path.rpartition("/")[2]) in names:
            content = (self.folder / name).read_bytes()
            etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self._send(content, {"Content-Type": "application/octet-stream", **etag})
        elif "/revision/" in path and names:
            owner, name = path.split("/")[3:5]
            files = [{"rfilename": name} for name in names]
            self._json({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": files, "private": True, "tags": []})
        elif "/tree/" in path and names:
            sizes = {name: (self.folder / name).stat().st_size for name in names}
            self._json([{"type": "file", "path": n, "size": sizes[n], "oid": "0" * 40} for n in names])
        else:
            self._json({"error": "Repository not found"}, 404)

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), {"Content-Type": "application/json"}, status)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def hub(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the repository in ``folder``; yields the address, and what was asked."""
    folder.mkdir(exist_ok=True)
    handler = type("Handler", (_Handler,), {"folder": folder, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.asked
    finally:
        server.shutdown()
        server.server_close()
