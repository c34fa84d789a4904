"""A Hugging Face Hub on the loopback address, of the standard library alone.

Holds model and data-set repositories in memory and answers the calls by which ``huggingface_hub``
creates a repository, uploads (regular files and LFS), commits, lists and downloads. It checks the
token and every LFS digest, keeps private repositories private, and can be told to fail.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath

from huggingface_hub import constants

from simcse.hub import snapshots

TOKEN = "hf_test"

# What may happen to a call in place of its answer; see `Hub.faults`.
HANG_UP = "hang up"  # in the middle of what the client sends
RESET = "reset"  # at once, as a firewall does
SILENCE = "silence"
SLOW = "slow"  # the right answer after half a second
LOOP = "redirect loop"
PAGE = 503, b"<html>Sorry</html>"  # what a proxy says for a Hub that is down

_COMMIT = re.compile("[0-9a-f]{40}")
_API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)"
    r"(?:/(preupload|commit|revision|tree|paths-info|branch|settings)(?:/([^/]+)(?:/(.*))?)?)?"
)
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Hub:
    """Repositories in memory, and a server for them.

    ``faults[METHOD, path-regex]`` is a list of what happens to the next calls that match: a status,
    one of the constants above, ``(status, body)`` of an answer, or None for nothing.
    ``tamper[end of a path]`` changes what is downloaded. ``log`` has method and path of every call.
    """

    def __init__(self, lfs_bytes=1 << 20, *, any_revision=False):
        self.lfs_bytes, self.any_revision = lfs_bytes, any_revision
        self.repos, self.lfs, self.log = {}, {}, []
        self.faults, self.private, self.tamper = {}, set(), {}
        handler = type("Handler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        # Closing waits for the next look at whether to go on, half a second apart by default.
        threading.Thread(target=self.server.serve_forever, args=[0.01], daemon=True).start()

    def close(self):
        """From now on connections are refused."""
        self.server.shutdown()
        self.server.server_close()

    def create(self, kind, name):
        self.repos[kind, name] = repository = {"refs": {}, "commits": {}}
        self.commit(repository, "main", {}, "init")
        return repository

    def commit(self, repository, branch, files, message):
        """``files`` are path to content and LFS digest or None."""
        about = sorted((path, self.oid(file)) for path, file in files.items())
        about = repr((len(repository["commits"]), branch, message, about))
        commit = hashlib.sha1(about.encode()).hexdigest()
        repository["commits"][commit] = files
        repository["refs"][branch] = commit
        return commit

    def add_dataset(self, name, files):
        files = {path: (content, None) for path, content in files.items()}
        self.commit(self.create("dataset", name), "main", files, "add")

    def resolve(self, repository, revision):
        if revision in repository["commits"]:
            return revision
        if self.any_revision and _COMMIT.fullmatch(revision):
            revision = "main"
        return repository["refs"].get(revision)

    @staticmethod
    def oid(file):
        return hashlib.sha1(b"blob %d\0" % len(file[0]) + file[0]).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self):
        self.hub.log.append((self.command, self.path))
        if (fault := self.next_fault()) is not None and not self.fail(fault):
            return
        body = self.body()
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        if path == "/api/validate-yaml":
            self.send(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path.startswith("/lfs/"):
            self.large_file(path.removeprefix("/lfs/"), body)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.send(200, {"transfer": "basic", "objects": self.to_upload(json.loads(body))})
        elif found := _API.fullmatch(path):
            kind, name, action, revision, folder = found.groups()
            self.folder = folder or ""
            self.recursive = "recursive=true" in url.query.lower()
            self.about_repository(kind[:-1], name, action, revision or "main", body)
        elif found := _FILE.fullmatch(path):
            self.file("dataset" if found[1] else "model", *found.groups()[1:])
        else:
            self.refuse(404, "RepoNotFound")

    do_GET = do_POST = do_PUT = do_HEAD = answer

    def next_fault(self):
        for (method, pattern), actions in self.hub.faults.items():
            if actions and method == self.command and re.search(pattern, self.path):
                return actions.pop(0)
        return None

    def fail(self, fault):
        """Whether the call is answered all the same."""
        if fault == HANG_UP:
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault == RESET:
            linger = struct.pack("ii", 1, 0)  # closing sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            with contextlib.suppress(OSError):
                self.rfile.close()
                self.connection.close()
        elif fault == SILENCE:
            self.body()
            threading.Event().wait(3)
        elif fault == SLOW:
            threading.Event().wait(0.5)
            return True
        else:
            self.body()
            if fault == LOOP:
                self.send(302, headers={"Location": self.path})
            elif isinstance(fault, int):
                self.refuse(fault, "Injected", "injected failure")
            else:
                self.send(*fault)
            return False
        self.close_connection = True
        return False

    def finish(self):
        with contextlib.suppress(OSError, ValueError):  # after a reset there is nothing to flush
            super().finish()

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, status, content=b"", headers=None):
        for name, change in self.hub.tamper.items():
            if self.command == "GET" and self.path.endswith(name):
                content = change(content)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "octet-stream" if isinstance(content, bytes) else "json"
        self.send_response(status)
        headers = {"Content-Type": f"application/{kind}", **(headers or {})}
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status, code, message=None, headers=None):
        headers = {"X-Error-Code": code, "X-Error-Message": message or code} | (headers or {})
        self.send(status, {"error": message or code}, headers)

    def authorized(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def create(self, wanted):
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        kind = wanted.get("type", "model")
        if not self.authorized():
            self.refuse(401, "Unauthorized", "Invalid username or password.")
        elif (kind, name) in self.hub.repos:
            url = f"{self.hub.url}/{name}"
            self.send(409, {"error": "exists", "url": url}, {"X-Error-Message": "exists"})
        else:
            self.hub.create(kind, name)
            if wanted.get("visibility") == "private":
                self.hub.private.add(name)
            self.send(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def large_file(self, digest, body):
        if self.command != "PUT":
            self.send(200, self.hub.lfs[digest])
        elif hashlib.sha256(body).hexdigest() != digest:
            self.refuse(400, "BadDigest")
        else:
            self.hub.lfs[digest] = body
            self.send(200)

    def to_upload(self, wanted):
        objects = wanted["objects"]
        for file in objects:
            if (digest := file["oid"]) not in self.hub.lfs:
                upload = {"href": f"{self.hub.url}/lfs/{digest}", "header": {}}
                file["actions"] = {"upload": upload}
        return objects

    def find(self, kind, name, revision):
        """Repository and commit; None and what is sent where there are none that may be seen."""
        repository = self.hub.repos.get((kind, name))
        if repository is None or (name in self.hub.private and not self.authorized()):
            self.refuse(401 if repository else 404, "RepoNotFound", "Repository not found")
            return None
        commit = self.hub.resolve(repository, revision)
        if commit is None:
            self.refuse(404, "RevisionNotFound", "Revision not found")
            return None
        return repository, commit

    def about_repository(self, kind, name, action, revision, body):
        found = self.find(kind, name, "main" if action == "branch" else revision)
        if found is None:
            return
        repository, commit = found
        files = repository["commits"][commit]
        if action == "settings":
            if json.loads(body)["visibility"] == "public":
                self.hub.private.discard(name)
            self.send(200, {})
        elif action == "branch":
            repository["refs"].setdefault(revision, repository["refs"]["main"])
            self.send(200)
        elif action == "preupload":
            modes = [self.mode(file, files) for file in json.loads(body)["files"]]
            self.send(200, {"files": modes})
        elif action == "commit":
            oid = self.add_commit(repository, revision, dict(files), body)
            url = f"{self.hub.url}/{name}/commit/{oid}"
            self.send(200, {"success": True, "commitOid": oid, "commitUrl": url})
        elif action == "tree":
            self.send(200, self.listing(files))
        elif action == "paths-info":
            if not body.startswith(b"{"):  # one call of the client sends a form
                body = json.dumps(urllib.parse.parse_qs(body.decode())).encode()
            wanted = json.loads(body)["paths"]
            self.send(200, [self.entry(path, files[path]) for path in wanted if path in files])
        else:
            pinned = self.hub.any_revision and _COMMIT.fullmatch(revision)
            self.send(
                200,
                {
                    "id": name,
                    "sha": revision if pinned else commit,
                    "private": name in self.hub.private,
                    "tags": [],
                    "siblings": [{"rfilename": path} for path in sorted(files)],
                },
            )

    def mode(self, file, files):
        """How a file is to be uploaded, and what is there of it, as the Hub says it."""
        old = files.get(file["path"])
        oid = None if old is None else old[1] or self.hub.oid(old)
        mode = "lfs" if file["size"] >= self.hub.lfs_bytes else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def add_commit(self, repository, branch, files, body):
        message = ""
        for line in body.decode().splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = (base64.b64decode(value["content"]), None)
                case "lfsFile":
                    files[value["path"]] = (self.hub.lfs[value["oid"]], value["oid"])
                case "deletedFile":
                    files.pop(value["path"], None)
        return self.hub.commit(repository, branch, files, message)

    def listing(self, files):
        """Files and folders below a folder, or in it."""
        start = f"{self.folder}/" if self.folder else ""
        below = {path: file for path, file in sorted(files.items()) if path.startswith(start)}
        parents = {str(parent) for path in below for parent in PurePosixPath(path).parents}
        folders = [path for path in sorted(parents - {"."}) if path.startswith(start)]
        entries = [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders]
        entries += [self.entry(path, file) for path, file in below.items()]
        return [
            entry
            for entry in entries
            if self.recursive or "/" not in entry["path"].removeprefix(start)
        ]

    def entry(self, path, file):
        size = len(file[0])
        entry = {"type": "file", "path": path, "size": size, "oid": self.hub.oid(file)}
        if file[1]:
            entry["lfs"] = {"oid": file[1], "size": size, "pointerSize": 134}
        return entry

    def file(self, kind, name, revision, path):
        found = self.find(kind, name, revision)
        if found is None:
            return
        repository, commit = found
        file = repository["commits"][commit].get(path)
        pinned = self.hub.any_revision and _COMMIT.fullmatch(revision)
        headers = {"X-Repo-Commit": revision if pinned else commit, "Accept-Ranges": "bytes"}
        if file is None:
            self.refuse(404, "EntryNotFound", "Entry not found", headers)
            return
        content, status = file[0], 200
        headers["ETag"] = f'"{file[1] or self.hub.oid(file)}"'
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self.send(status, content, headers)


@contextlib.contextmanager
def only_hub(monkeypatch, cache, **settings):
    """A Hub, the client in this process told to use it and nothing else, and no waiting.

    ``waited`` has the seconds that would have been waited between attempts.
    """
    hub = Hub(**settings)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.waited = []
    monkeypatch.setattr(time, "sleep", hub.waited.append)
    snapshots.snapshot.cache_clear()
    yield hub
    snapshots.snapshot.cache_clear()
    hub.close()


def tree(hub, name, branch="main"):
    """Files of a model repository at a branch: path to content."""
    repository = hub.repos["model", name]
    files = repository["commits"][hub.resolve(repository, branch)]
    return {path: content for path, (content, _) in files.items()}


def commits(hub, name):
    """Number of commits of a model repository, the first and empty one included."""
    return len(hub.repos["model", name]["commits"])
