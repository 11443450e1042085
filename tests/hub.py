"""A server on this machine that speaks as much of the Hugging Face hub's protocol as downloads and uploads need."""

import base64
import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

TOKEN, ORGANISATION = "hf_of_the_tests", "lab"  # who may write, and where
LARGE = (".safetensors", ".png")  # stored by LFS
Answer = tuple[int, bytes | dict | list, dict[str, str]]


def listing(files: dict[str, bytes]) -> list[dict]:
    return [{"type": "file", "path": name, "size": len(body), "oid": "0"} for name, body in files.items()]


def digest(body: bytes, name: str = "") -> str:
    """Return the id of a stored file: of a small one git's, else its SHA-256."""
    if name and not name.endswith(LARGE):
        return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
    return hashlib.sha256(body).hexdigest()


class Commit(NamedTuple):
    """A state of a repository: its id, why it is there, and name to content."""

    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Models:
    """The model repositories of a server, with what has been sent to it.

    Attributes:
        repositories: ORG/NAME to commits, the newest last.
        objects: contents of large files by SHA-256.
        requests: method and path of everything that was asked.
        failures: part of a path to how many requests of it fail with status 503.
    """

    repositories: dict[str, list[Commit]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    address: str = ""

    def add(self, repository: str, message: str, files: dict[str, bytes]) -> Commit:
        commits = self.repositories.setdefault(repository, [])
        content = json.dumps([message, len(commits), sorted(files)]).encode()
        commits.append(Commit(hashlib.sha1(content).hexdigest(), message, files))
        return commits[-1]

    def answer(self, method: str, path: str, body: bytes, token: str) -> Answer:
        self.requests.append((method, path))
        for part, left in self.failures.items():
            if part in path and left:
                self.failures[part] -= 1
                return 503, {"error": "busy"}, {}
        if method in ("GET", "HEAD"):
            return self.read(path)
        if method == "PUT":  # to the address that the LFS endpoint gave
            self.objects[digest(body)] = body
            return 200, b"", {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}, {}
        return self.write(path, body)

    def read(self, path: str) -> Answer:
        for repository, commits in self.repositories.items():
            by_revision = {commit.oid: commit for commit in commits} | {"main": commits[-1]}
            if path in (f"/api/models/{repository}", f"/api/models/{repository}/revision/main"):
                siblings = [{"rfilename": name} for name in commits[-1].files]
                info = {"id": repository, "sha": commits[-1].oid, "private": repository in self.private}
                return 200, info | {"siblings": siblings}, {}
            for revision, commit in by_revision.items():
                if path == f"/api/models/{repository}/tree/{revision}":
                    return 200, listing(commit.files), {}
                name = path.removeprefix(f"/{repository}/resolve/{revision}/")
                if name != path and name in commit.files:
                    found = commit.files[name]
                    return 200, found, {"ETag": f'"{digest(found)}"', "X-Repo-Commit": commit.oid}
                if name != path:
                    return 404, {}, {"X-Error-Code": "EntryNotFound"}
        return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}

    def write(self, path: str, body: bytes) -> Answer:
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        for repository, commits in self.repositories.items():
            if path == f"/api/models/{repository}/preupload/main":
                return 200, {"files": [self.upload_mode(file, commits[-1]) for file in json.loads(body)["files"]]}, {}
            if path == f"/{repository}.git/info/lfs/objects/batch":
                wanted = json.loads(body)["objects"]
                return 200, {"transfer": "basic", "objects": [self.instructions(each) for each in wanted]}, {}
            if path == f"/api/models/{repository}/commit/main":
                return self.commit(repository, [json.loads(line) for line in body.splitlines()])
        return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}

    def create(self, asked: dict) -> Answer:
        repository = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != ORGANISATION:
            problem = f'You don\'t have the rights to create a model under the namespace "{asked["organization"]}".'
            return 403, {"error": problem}, {}
        if repository in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.address}/{repository}"}, {}
        self.add(repository, "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        if asked.get("visibility") == "private":
            self.private.add(repository)
        return 200, {"url": f"{self.address}/{repository}"}, {}

    def upload_mode(self, file: dict, newest: Commit) -> dict:
        name = file["path"]
        mode = {"path": name, "uploadMode": "lfs" if name.endswith(LARGE) else "regular", "shouldIgnore": False}
        return mode | ({"oid": digest(newest.files[name], name)} if name in newest.files else {})

    def instructions(self, wanted: dict) -> dict:
        if wanted["oid"] in self.objects:
            return wanted
        return wanted | {"actions": {"upload": {"href": f"{self.address}/lfs/{wanted['oid']}"}}}

    def commit(self, repository: str, lines: list[dict]) -> Answer:
        header, *operations = lines
        newest = self.repositories[repository][-1]
        if header["value"].get("parentCommit", newest.oid) != newest.oid:
            return 412, {"error": "A commit has happened since. Please refresh and try again."}, {}
        files = dict(newest.files)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile" and value["oid"] in self.objects:
                files[value["path"]] = self.objects[value["oid"]]
            else:
                return 400, {"error": f"{operation['key']} cannot be committed"}, {}
        made = self.add(repository, header["value"]["summary"], files)
        return (
            200,
            {"success": True, "commitOid": made.oid, "commitUrl": f"{self.address}/{repository}/commit/{made.oid}"},
            {},
        )


def read_data_set(data_sets: dict[tuple[str, str], dict[str, bytes]], path: str) -> Answer | None:
    for (repo, commit), files in data_sets.items():
        if path.startswith(f"/api/datasets/{repo}/tree/{commit}"):
            return 200, listing(files), {}
        if path.startswith(f"/api/datasets/{repo}/revision/{commit}"):
            return 200, {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]}, {}
        folder = f"/datasets/{repo}/resolve/{commit}/"
        name = path.removeprefix(folder)
        if path.startswith(folder) and name in files:
            return 200, files[name], {"ETag": f'"{digest(files[name])}"', "X-Repo-Commit": commit}
    return None


@contextlib.contextmanager
def local_hub(
    data_sets: dict[tuple[str, str], dict[str, bytes]], models: Models | None = None
) -> Iterator[dict[str, str]]:
    """Serve files of data sets, (id, commit) to name to content, and models; yield the environment that uses them."""
    models = models or Models()

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            path = self.path.partition("?")[0]
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = self.headers.get("Authorization", "")
            found = read_data_set(data_sets, path) or models.answer(self.command, path, body, token)
            status, content, headers = found
            if not isinstance(content, bytes):
                content, headers = json.dumps(content).encode(), headers | {"Content-Type": "application/json"}
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_HEAD = do_POST = do_PUT = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    models.address = address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield {**os.environ, "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    finally:
        server.shutdown()
        server.server_close()
