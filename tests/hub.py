"""A server on this machine that speaks as much of the Hugging Face hub's protocol as a download needs."""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def listing(files: dict[str, bytes]) -> list[dict]:
    return [{"type": "file", "path": name, "size": len(body), "oid": "0"} for name, body in files.items()]


@contextlib.contextmanager
def local_hub(data_sets: dict[tuple[str, str], dict[str, bytes]]) -> Iterator[dict[str, str]]:
    """Serve files of data sets, (id, commit) to name to content; yield the environment that uses the server."""

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            for (repo, commit), files in data_sets.items():
                if self.path.startswith(f"/api/datasets/{repo}/tree/{commit}"):
                    return self.answer(200, json.dumps(listing(files)).encode(), Content_Type="application/json")
                if self.path.startswith(f"/api/datasets/{repo}/revision/{commit}"):
                    info = {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
                    return self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
                folder = f"/datasets/{repo}/resolve/{commit}/"
                name = self.path.removeprefix(folder).partition("?")[0]
                if self.path.startswith(folder) and name in files:
                    etag = hashlib.sha256(files[name]).hexdigest()
                    return self.answer(200, files[name], ETag=f'"{etag}"', X_Repo_Commit=commit)
            return self.answer(404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield {**os.environ, "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    finally:
        server.shutdown()
        server.server_close()
