"""A stand-in for the API of the Hugging Face hub on this machine: repositories, uploads, commits and downloads."""

import base64
import json
import os
import sys
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import huggingface_hub
import pytest

TOKEN = "hf_stand-in"
COMMIT = 40 * "1"


class StandIn:
    """What was asked of it, and what its repositories hold.

    `refuse` maps the beginning of a path to the status and the message with which it is refused.
    """

    def __init__(self):
        self.repositories = {}
        self.created = []
        self.blobs = {}
        self.asked = []
        self.refuse = {}
        self.endpoint = ""

    def answer(self, method, path, headers, body):
        self.asked.append((method, path))
        if not path.startswith("/blobs/") and headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        for beginning, (status, said) in self.refuse.items():
            if path.startswith(beginning):
                return status, {"error": said}
        if method == "PUT":
            self.blobs[path.removeprefix("/blobs/")] = body
            return 200, {}
        fields = json.loads(body) if path.startswith("/api/repos/") or "preupload" in path or "lfs" in path else {}
        if path == "/api/repos/create":
            return self.create(fields)
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        if "/preupload/" in path:
            return 200, {"files": [self.mode(file) for file in fields["files"]]}
        if path.endswith("/objects/batch"):
            objects = [self.place(part) for part in fields["objects"]]
            return 200, {"transfer": "basic", "objects": objects}
        if "/commit/" in path:
            return self.commit("/".join(path.split("/")[3:5]), body)
        return self.read(path)

    def read(self, path):
        if path.startswith("/api/models/") and ("/revision/" in path or "/tree/" in path):
            return self.listing("/".join(path.split("/")[3:5]), tree="/tree/" in path)
        if "/resolve/" in path:
            name, _, file = path.lstrip("/").partition("/resolve/")
            return self.file(name, file.partition("/")[2])
        return 404, {"error": f"no {path} here"}

    def create(self, fields):
        name = f"{fields.get('organization') or 'me'}/{fields['name']}"
        self.created.append((name, fields.get("visibility")))
        url = {"url": f"{self.endpoint}/{name}"}
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", **url}
        self.repositories[name] = {}
        return 200, url

    @staticmethod
    def mode(file):
        large = file["path"].endswith(".safetensors")
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def place(self, part):
        upload = {"href": f"{self.endpoint}/blobs/{part['oid']}"}
        return {"oid": part["oid"], "size": part["size"], "actions": {"upload": upload}}

    def listing(self, name, *, tree):
        files = self.repositories[name]
        if tree:
            return 200, [{"type": "file", "path": path, "size": len(files[path]), "oid": "0"} for path in files]
        return 200, {"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]}

    def file(self, name, path):
        """The content, with what the client wants to know of it."""
        files = self.repositories.get(name, {})
        if path not in files:
            return 404, {"error": f"no {path} here"}
        return 200, files[path]

    def commit(self, name, body):
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                blob = self.blobs[value["oid"]]
                assert sha256(blob).hexdigest() == value["oid"]
                self.repositories[name][value["path"]] = blob
            elif line["key"] == "deletedFile":
                del self.repositories[name][value["path"]]
        return 200, {"commitUrl": f"{self.endpoint}/{name}/commit/1", "commitOid": COMMIT}


@contextmanager
def hub_stand_in(patch: pytest.MonkeyPatch):
    """Run one, and let huggingface_hub talk to it with a write token while the block runs."""
    hub = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, answer = hub.answer(self.command, self.path.partition("?")[0], self.headers, body)
            text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            if isinstance(answer, bytes):
                self.send_header("ETag", f'"{sha256(answer).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
            else:
                self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        do_PUT = do_GET = do_HEAD = do_POST

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    log_in(patch, hub.endpoint)
    try:
        yield hub
    finally:
        huggingface_hub.close_session()
        server.shutdown()
        thread.join()
        server.server_close()


def log_in(patch, endpoint, token=TOKEN):
    """Point huggingface_hub at an endpoint; no token means that nobody is logged in."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        patch.delenv(name)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        patch.delenv(name, raising=False)
    if token:
        patch.setenv("HF_TOKEN", token)
    constants = sys.modules["huggingface_hub.constants"]
    patch.setattr(constants, "ENDPOINT", endpoint)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
    patch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    huggingface_hub.close_session()
