"""The shared Hub server with what the real one also does: refuse, fail, hang up, keep secrets."""

import importlib.util
import json
import re
import socket
import threading

import pytest
from conftest import ROOT

SERVER = ROOT.parent / "shared" / "tools" / "hub_server.py"
TOKEN = "hf_test"
HANG_UP = "hang up"
SILENCE = "silence"
PAGE = "page"


def start_hub(**settings):
    """A server on the loopback address; skips where the shared tools are not at hand.

    ``faults[METHOD, path-regex]`` is a list of what happens to the next calls that match: a status,
    :data:`HANG_UP` (in the middle of what the client sends), :data:`SILENCE`, :data:`PAGE`
    or None for nothing.
    ``tamper[end of a path]`` changes what is downloaded.
    """
    if not SERVER.is_file():
        pytest.skip("needs ../shared/tools/hub_server.py")
    spec = importlib.util.spec_from_file_location("shared_hub_server", SERVER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hub = module.Hub(quiet=True, token=TOKEN, **settings)
    hub.faults, hub.private, hub.tamper = {}, set(), {}
    parents = (LikeTheReal, hub.server.RequestHandlerClass)
    hub.server.RequestHandlerClass = type("Handler", parents, {"hub": hub})
    return hub


class LikeTheReal:
    """Goes before the shared server's handler."""

    def route(self):
        action = self.next_fault()
        if action == HANG_UP:
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None
        if action == SILENCE:
            self.body()
            threading.Event().wait(3)
            self.close_connection = True
            return None
        if action == PAGE:  # what a proxy says for a Hub that is down
            self.body()
            return self.send(503, b"<html>Sorry</html>")
        if action is not None:
            self.body()
            return self.err(action, "Injected", "injected failure")
        repository = re.match(r"/(?:api/models/)?([^/?]+/[^/?]+)", self.path)
        if repository and repository[1] in self.hub.private and not self.authorized():
            self.body()
            return self.err(401, "RepoNotFound", "Repository not found")
        if settings := re.fullmatch(r"/api/models/([^/]+/[^/]+)/settings", self.path):
            if json.loads(self.body())["visibility"] == "public":
                self.hub.private.discard(settings[1])
            return self.send(200, {})
        return super().route()

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = route

    def next_fault(self):
        for (method, pattern), actions in self.hub.faults.items():
            if actions and method == self.command and re.search(pattern, self.path):
                return actions.pop(0)
        return None

    def authorized(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def body(self):
        data = super().body()
        if self.path == "/api/repos/create" and self.authorized():
            wanted = json.loads(data)
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            if wanted.get("visibility") == "private" and ("model", name) not in self.hub.repos:
                self.hub.private.add(name)
        return data

    def send(self, code, obj=b"", headers=None):
        if isinstance(obj, dict) and "private" in obj:
            obj["private"] = obj["id"] in self.hub.private
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/?]+).*", self.path)
        if found and code == 200:  # says what it has, as the Hub does
            files = tree(self.hub, *found.groups(), whole=True)
            for file in obj["files"]:
                if (old := files.get(file["path"])) is not None:
                    file["oid"] = old[1] or self.hub.oid(old)
        for name, change in self.hub.tamper.items():
            if self.command == "GET" and self.path.endswith(name):
                obj = change(obj)
        return super().send(code, obj, headers)


def tree(hub, name, branch="main", *, whole=False):
    """Files of a model repository at a branch: path to content, or to content and LFS digest."""
    repository = hub.repos["model", name]
    files = repository["commits"][hub.resolve(repository, branch)]
    return files if whole else {path: content for path, (content, _) in files.items()}


def commits(hub, name):
    """Number of commits of a model repository, the first and empty one included."""
    return len(hub.repos["model", name]["commits"])
