"""A local stand-in for the Hub: the part of its HTTP API that pushing and loading use, over real sockets."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_secret"
READ_TOKEN = "hf_reader"


@dataclass
class Repository:
    """Commits by their hash, the files of each, and the commit of each branch."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, changes: dict[str, bytes], message: str = "") -> str:
        files = {**self.commits.get(self.branches.get(branch, ""), {}), **changes}
        number = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[number], self.branches[branch] = files, number
        self.messages.append(message)
        return number

    def files(self, branch: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[branch]]


class FakeHub(ThreadingHTTPServer):
    """Serves `repositories`; `requests` keeps method and path of every call; `broken` answers 500 to everything."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.broken = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, name: str, files: dict[str, bytes], **options: Any) -> Repository:
        self.repositories[name] = Repository(**options)
        self.repositories[name].commit("main", files)
        return self.repositories[name]


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, status: int, body: Any = None, code: str = "", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if code:
            self.send_header("X-Error-Code", code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _run(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.server.broken:
            self._answer(500, b"broken")
            return
        for pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match:
                getattr(self, answer)(**match.groupdict())
                return
        self._answer(404, {"error": f"no such address {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = _run

    def _may_write(self) -> bool:
        if self.token != TOKEN:
            self._answer(403 if self.token == READ_TOKEN else 401, {"error": "not allowed"})
        return self.token == TOKEN

    def _repository(self, name: str) -> Repository | None:
        repository = self.server.repositories.get(name)
        known = self.token in (TOKEN, READ_TOKEN)
        if repository is None or (repository.private and not known):
            self._answer(404 if known else 401, {"error": "Repository not found"}, "RepoNotFound")
            return None
        if repository.gated:
            self._answer(403, {"error": "gated"}, "GatedRepo")
            return None
        return repository

    def _commit(self, repository: Repository, revision: str) -> str | None:
        number = repository.branches.get(revision, revision)
        if number not in repository.commits:
            self._answer(404, {"error": "Revision not found"}, "RevisionNotFound")
            return None
        return number

    def create(self) -> None:
        if self._may_write():
            asked = json.loads(self.body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.server.repositories:
                self._answer(409, {"url": f"{self.server.url}/{name}", "error": "it exists"})
                return
            repository = self.server.repositories[name] = Repository(
                asked.get("private") or asked.get("visibility") == "private"
            )
            repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial")
            self._answer(200, {"url": f"{self.server.url}/{name}"})

    def branch(self, name: str, branch: str) -> None:
        if self._may_write() and (repository := self._repository(name)):
            repository.branches.setdefault(branch, repository.branches["main"])
            self._answer(201)

    def card(self) -> None:
        head = json.loads(self.body)["content"].split("---\n")[1]
        try:
            fine = isinstance(yaml.safe_load(head), dict)
        except yaml.YAMLError:
            fine = False
        self._answer(200 if fine else 400, {"warnings": [], "errors": [] if fine else [{"message": "bad YAML"}]})

    def preupload(self, name: str, revision: str) -> None:
        if self._may_write() and self._repository(name):
            asked = [each["path"] for each in json.loads(self.body)["files"]]
            modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in asked}
            files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
            self._answer(200, {"files": files})

    def batch(self, name: str) -> None:
        if self._may_write():
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}}
                for each in json.loads(self.body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        self.server.blobs[oid] = self.body
        self._answer(200 if hashlib.sha256(self.body).hexdigest() == oid else 400)

    def commit(self, name: str, revision: str) -> None:
        if not (self._may_write() and (repository := self._repository(name))):
            return
        changes: dict[str, bytes] = {}
        message = ""
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            else:
                changes[value["path"]] = self.server.blobs[value["oid"]]
        number = repository.commit(revision, changes, message)
        self._answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{number}", "commitOid": number})

    def info(self, name: str, revision: str = "main") -> None:
        if (repository := self._repository(name)) and (number := self._commit(repository, revision)):
            siblings = [{"rfilename": path} for path in repository.commits[number]]
            self._answer(200, {"id": name, "sha": number, "private": repository.private, "siblings": siblings})

    def tree(self, name: str, revision: str, below: str | None = None) -> None:
        if (repository := self._repository(name)) and (number := self._commit(repository, revision)):
            if below:
                self._answer(404, {"error": "no such folder"}, "EntryNotFound")
                return
            files = repository.commits[number].items()
            entries = [
                {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for p, c in files
            ]
            self._answer(200, entries)

    def resolve(self, name: str, revision: str, path: str) -> None:
        if (repository := self._repository(name)) and (number := self._commit(repository, revision)):
            content = repository.commits[number].get(path)
            if content is None:
                self._answer(404, {"error": "no such file"}, "EntryNotFound", X_Repo_Commit=number)
            else:
                self._answer(200, content, X_Repo_Commit=number, ETag=f'"{hashlib.sha1(content).hexdigest()}"')


_NAME = r"(?P<name>[^/]+/[^/]+)"
_ROUTES = [
    ("/api/repos/create", "create"),
    ("/api/validate-yaml", "card"),
    (f"/api/models/{_NAME}/branch/(?P<branch>[^/]+)", "branch"),
    (f"/api/models/{_NAME}/preupload/(?P<revision>[^/]+)", "preupload"),
    (f"/api/models/{_NAME}/commit/(?P<revision>[^/]+)", "commit"),
    (f"/api/models/{_NAME}/tree/(?P<revision>[^/]+)(/(?P<below>.+))?", "tree"),
    (f"/api/models/{_NAME}/revision/(?P<revision>[^/]+)", "info"),
    (f"/api/models/{_NAME}", "info"),
    (rf"/{_NAME}\.git/info/lfs/objects/batch", "batch"),
    ("/lfs/(?P<oid>[0-9a-f]+)", "upload"),
    (f"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]
