"""A Hugging Face hub of one process, as much of it as pushing to a repository and downloading from it takes."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """Repositories in memory: repo id -> commits, each a mapping of file name to bytes, newest last."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, list[dict[str, bytes]]] = {}
        self.refuse = False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


def sha(repo, number):
    return hashlib.sha1(f"{repo}/{number}".encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_):
        pass

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, value, status=200, headers=None):
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self):
        path, body = urlsplit(self.path).path, self.body()
        if self.server.refuse:
            return self.answer({"error": "no"}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            self.server.repos.setdefault(repo, [])
            return self.answer({"url": f"{self.server.url}/{repo}", "name": repo})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        owner, name, verb = path.removeprefix("/api/models/").split("/")[:3]
        if verb == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        commits = self.server.repos[f"{owner}/{name}"]
        tree = dict(commits[-1]) if commits else {}
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                tree[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        commits.append(tree)
        oid = sha(f"{owner}/{name}", len(commits))
        return self.answer(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{owner}/{name}/commit/{oid}"}
        )

    def do_GET(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repo, what = "/".join(parts[2:4]), parts[4:5]
        else:
            repo, what = "/".join(parts[:2]), ["resolve"]
        commits = self.server.repos.get(repo)
        if not commits:
            return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        tree, oid = commits[-1], sha(repo, len(commits))
        if what == ["tree"]:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in tree.items()
            ]
            return self.answer(entries)
        if what in ([], ["revision"]):
            return self.answer({"id": repo, "sha": oid, "siblings": [{"rfilename": name} for name in tree], "tags": []})
        name = "/".join(parts[4:])
        if name not in tree:
            return self.answer({"error": "no such file"}, 404, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{hashlib.sha1(tree[name]).hexdigest()}"', "X-Repo-Commit": oid}
        return self.answer(tree[name], 200, headers)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server asks for


@contextmanager
def serving(monkeypatch):
    """A running hub that huggingface_hub takes for the real one."""
    from huggingface_hub import constants

    hub = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
