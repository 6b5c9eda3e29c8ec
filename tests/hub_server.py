"""A Hugging Face Hub on 127.0.0.1 for the real huggingface_hub, in memory, with faults on demand.

The Hub is a process of its own, so that tests meet sockets, statuses and broken connections as
users do. A test holds it as

    with Hub(users={"alice": "hf_alice"}) as hub:
        hub.fault("cut", "GET .*/model.safetensors", after_bytes=1000)
        subprocess.run(command, env=os.environ | hub.environment(hub.tokens["alice"]))
        assert len(hub.log("POST .*/commit/")) == 1

Clients must have HF_HUB_DISABLE_XET=1, as in `Hub.environment`: large files go by LFS here. Read
downward: what is kept, what goes wrong, what each address does, HTTP, what a test holds.
"""

import argparse
import base64
import contextlib
import copy
import dataclasses
import fnmatch
import hashlib
import itertools
import json
import os
import re
import secrets
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml

LFS_SIZE = 10 * 1024 * 1024  # bytes from which a file is too large for git itself
LFS_PATTERNS = ["*.png", "*.safetensors"]  # in LFS whatever a repository's .gitattributes says
LFS_IN_NEW = ["*.bin", "*.gz", "*.npy", "*.npz", "*.parquet", "*.pkl", "*.pt", "*.zip"]


# What the Hub keeps


@dataclass
class Request:
    """What arrived; `path` still has its percent signs, because they tell / from %2F."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    user: str | None  # None without a token, "" with a token that nobody has
    body: bytes = b""

    @property
    def line(self) -> str:
        """What the tests' regular expressions see."""
        return f"{self.method} {unquote(self.path)}"

    def json(self) -> Any:
        return json.loads(self.body or b"{}")


@dataclass
class Answer:
    """What goes back: bytes as they are, anything else as JSON."""

    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """An error as the Hub tells it: `code` is a header that chooses the client's exception."""

    def __init__(self, status: int, message: str, code: str = "", **extra):
        super().__init__(message)
        # A header is one line of ASCII, and a message may quote any path.
        headers = {"X-Error-Message": re.sub(r"[^ -~]", "?", message)}
        headers |= {"X-Error-Code": code} if code else {}
        self.answer = Answer(status, {"error": message, **extra}, headers)


@dataclass(frozen=True)
class File:
    """A file at one commit; its content is found by `sha256`."""

    sha256: str
    oid: str  # what git calls it: the content's, or that of the pointer that stands for it
    size: int
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def json(self) -> dict[str, Any]:
        """With the names that infos have, and those that trees have."""
        row = {"size": self.size, "blobId": self.oid, "oid": self.oid}
        length = len(lfs_pointer(self.sha256, self.size))
        lfs = {"sha256": self.sha256, "oid": self.sha256, "size": self.size, "pointerSize": length}
        return row | ({"lfs": lfs} if self.lfs else {})


@dataclass(frozen=True)
class Commit:
    """A state of a repository, never changed."""

    oid: str
    parent: str | None
    title: str
    text: str
    author: str
    date: str
    files: dict[str, File]

    def under(self, path: str) -> dict[str, File]:
        """The file at a path, or the files of the folder at a path."""
        return {p: f for p, f in self.files.items() if p == path or p.startswith(f"{path}/")}


@dataclass
class Repository:
    """A repository; `kind` is models, datasets or spaces, as in the API's addresses."""

    kind: str
    name: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)  # what was uploaded here; commits name nothing else

    @property
    def page(self) -> str:
        """Its address without the host; a model's has no prefix."""
        return f"/{self.name}" if self.kind == "models" else f"/{self.kind}/{self.name}"

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a commit's name stands for."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def history(self, commit: Commit) -> list[Commit]:
        """A commit, its parent, its parent's parent, ..."""
        history = [commit]
        while parent := history[-1].parent:
            history.append(self.commits[parent])
        return history

    def last_change(self, commit: Commit, path: str) -> Commit:
        """The commit that made what is at a path, file or folder, what it is."""
        history = self.history(commit)
        for newer, older in itertools.pairwise(history):
            if newer.under(path) != older.under(path):
                return newer
        return history[-1]

    def add(self, branch: str, files: dict[str, File], user: str, title: str, text: str) -> Commit:
        """Makes a commit, and makes it the branch's head."""
        parent, date = self.branches.get(branch), now()
        oid = hashlib.sha1(f"{parent} {title} {date} {secrets.token_hex()}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, text, user, date, files)
        self.branches[branch] = oid
        return self.commits[oid]


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(oid: str, size: int) -> bytes:
    """The text that git keeps in the place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()


def read_metadata(card: str) -> Any:
    """The YAML at the head of a card, None where there is none."""
    found = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", card, re.S)
    return yaml.safe_load(found[1]) if found else None


# What goes wrong


@dataclass
class Fault:
    """Something that goes wrong with requests whose line, "GET /alice/net/...", has a match.

    status: answers `status` with `error` and `headers`, and carries nothing out.
    cut: closes the connection after `after_bytes` of a body. `side` says of which one: "request",
        and nothing is carried out, or "response", and all is; unless given, "request" where the
        request has a body. `reset` closes with a TCP reset, not with an orderly end.
    corrupt: inverts the bits of `length` bytes of the answer, after `after_bytes` good ones.
    delay: waits `seconds` before it carries the request out.
    listing: adds a file `path` to the files that an info or a tree tells of.
    hold: keeps requests waiting until there are `parties` of them, at most `seconds`, so that
        they truly meet.

    Args:
        kind: One of the above.
        match: Regular expression, searched in the line.
        times: How many requests it hits; None for all until the faults are cleared.
        skip: How many matching requests it lets pass first.
    """

    kind: str
    match: str
    times: int | None = 1
    skip: int = 0
    status: int = 500
    error: str = "Internal Error"
    headers: dict[str, str] = field(default_factory=dict)
    after_bytes: int = 0
    length: int = 1
    side: str = ""
    reset: bool = False
    seconds: float = 20.0
    path: str = "../evil.py"
    parties: int = 2
    hits: int = 0

    def __post_init__(self):
        if self.kind not in ("status", "cut", "corrupt", "delay", "listing", "hold"):
            raise ValueError(f"{self.kind!r} is no kind of fault")
        re.compile(self.match)
        if self.kind == "hold":
            self.times = self.parties
        self.barrier = threading.Barrier(self.parties)  # not a field, so not in the fault's JSON

    def takes(self, request: Request) -> bool:
        """Whether it hits this request; counts."""
        if self.hits == self.times or not re.search(self.match, request.line):
            return False
        self.skip -= 1
        self.hits += self.skip < 0
        return self.skip < 0

    def corrupt(self, payload: bytes) -> bytes:
        start, stop = self.after_bytes, self.after_bytes + self.length
        return payload[:start] + bytes(b ^ 0xFF for b in payload[start:stop]) + payload[stop:]

    def list_extra(self, body: Any) -> None:
        """Adds a file to the two answers from which clients learn what there is."""
        if isinstance(body, dict) and "siblings" in body:
            body["siblings"].append({"rfilename": self.path})
        elif isinstance(body, list):
            body.append({"type": "file", "path": self.path, "size": 1, "oid": "0" * 40})

    def hold(self) -> None:
        try:
            self.barrier.wait(self.seconds)
        except threading.BrokenBarrierError:
            # To let it pass would hide from the test that its publishers never met.
            message = f"hold: {self.parties} requests did not meet in {self.seconds} s"
            raise Refusal(500, message) from None


# What each address does


class HubState:
    """All that the Hub knows, and the functions that ROUTES names.

    Such a function gets the request and what the address names: a repository or a collection that
    the user may use so, and parts of the address. It returns JSON or an Answer, or it refuses.

    Attributes:
        tokens: Maps a token to its user.
        organizations: Maps an organization to its members.
        log: The requests in order of arrival, those of tests' control left out.
    """

    def __init__(self, tokens: dict[str, str], organizations: dict[str, list[str]]):
        self.url = ""  # known when the port is
        self.tokens = tokens
        self.organizations = organizations
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.collections: dict[str, dict[str, Any]] = {}  # as in their JSON
        self.faults: list[Fault] = []
        self.log: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    def carry_out(self, request: Request) -> Answer:
        for method, pattern, access, function in ROUTES:
            asked = "GET" if request.method == "HEAD" else request.method
            if method == asked and (found := re.fullmatch(pattern, request.path)):
                # Nothing below waits for the network: one lock makes every request atomic.
                with self.lock:
                    return self.call(function, request, access, found.groupdict())
        raise Refusal(404, f"There is nothing at {request.line}")

    def call(self, function: Callable, request: Request, access: str, groups: dict) -> Answer:
        if request.user == "":
            raise Refusal(401, "Invalid credentials in Authorization header")
        groups = {name: unquote(text or "") for name, text in groups.items()}
        if access and "slug" in groups:
            found = self.find_collection(request.user, groups.pop("slug"), access == "write")
            groups["collection"] = found
        elif access:
            kind, name = groups.pop("kind") or "models", groups.pop("name")
            groups["repository"] = self.find(request.user, kind, name, access == "write")
        result = function(self, request, **groups)
        # A copy, because JSON is made of it when the next request may be changing it.
        return result if isinstance(result, Answer) else Answer(200, copy.deepcopy(result or {}))

    # Who may do what

    def acts_for(self, user: str | None, owner: str) -> bool:
        return user == owner or user in self.organizations.get(owner, [])

    def find(self, user: str | None, kind: str, name: str, write: bool = False) -> Repository:
        repository = self.repositories.get((kind, name))
        owns = self.acts_for(user, name.split("/")[0])
        if user is None and (write or repository is None or repository.private):
            # The Hub sends no code here: the client takes a 401 from such an address for
            # RepositoryNotFoundError, but only over HTTPS. Over HTTP the code says the same.
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        if repository is None or (repository.private and not owns):
            # The same for both, so that nobody learns which private repositories there are.
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if write and not owns:
            message = "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"
            raise Refusal(403, message)
        return repository

    def check_namespace(self, user: str | None, what: str, owner: str) -> None:
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if not self.acts_for(user, owner):
            message = f'You don\'t have the rights to create a {what} under the namespace "{owner}"'
            raise Refusal(403, message)

    def whoami(self, request: Request) -> dict[str, Any]:
        if request.user is None:
            raise Refusal(401, "Invalid username or password.")
        names = [n for n, members in self.organizations.items() if request.user in members]
        organizations = [{"type": "org", "name": n, "roleInOrg": "write"} for n in names]
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        user = {"type": "user", "name": request.user, "fullname": request.user}
        return user | {"orgs": organizations, "auth": token}

    # Repositories

    def create(self, request: Request) -> dict[str, Any]:
        data = request.json()
        kind, owner = data.get("type") or "model", data.get("organization") or request.user
        self.check_namespace(request.user, kind, owner)
        private = data.get("visibility") == "private" or bool(data.get("private"))
        repository = Repository(f"{kind}s", f"{owner}/{data['name']}", private)
        address = {"url": self.url + repository.page, "name": repository.name}
        if (repository.kind, repository.name) in self.repositories:
            # The client reads the address from this refusal, too, if the repository may exist.
            raise Refusal(409, f"You already created this {kind} repo", **address)
        self.repositories[repository.kind, repository.name] = repository
        lines = [f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_IN_NEW]
        files = {".gitattributes": self.keep("".join(lines).encode(), lfs=False)}
        repository.add("main", files, request.user, "initial commit", "")
        return address

    def delete(self, request: Request) -> None:
        data = request.json()
        name = f"{data.get('organization') or request.user}/{data['name']}"
        kind = (data.get("type") or "model") + "s"
        del self.repositories[kind, self.find(request.user, kind, name, write=True).name]

    def set_settings(self, request: Request, repository: Repository) -> None:
        if visibility := request.json().get("visibility"):
            repository.private = visibility == "private"

    def info(self, request: Request, repository: Repository, revision: str = "main") -> dict:
        body = self.describe(repository, repository.at(revision))
        if "blobs" not in request.query:
            body["siblings"] = [{"rfilename": s["rfilename"]} for s in body["siblings"]]
        return body

    def list_repositories(self, request: Request, kind: str) -> list[dict[str, Any]]:
        query, rows = {k: v[0] for k, v in request.query.items()}, []
        for _, repository in sorted(self.repositories.items()):
            row = self.describe(repository, repository.at("main"))
            seen = not row["private"] or self.acts_for(request.user, row["author"])
            named = query.get("search", "").lower() in row["id"].lower()
            owned = query.get("author", row["author"]) == row["author"]
            tagged = {*request.query.get("filter", [])} <= {*row["tags"]}
            if repository.kind == kind and seen and named and owned and tagged:
                rows.append(row)
        if "full" not in query:
            rows = [{k: v for k, v in r.items() if k not in ("siblings", "sha")} for r in rows]
        return rows[: int(query.get("limit", 1000))]

    def describe(self, repository: Repository, commit: Commit) -> dict[str, Any]:
        card: Any = None
        with contextlib.suppress(KeyError, yaml.YAMLError):  # no card, or one that nobody can read
            card = read_metadata(self.blobs[commit.files["README.md"].sha256].decode())
        card = card if isinstance(card, dict) else {}
        tags = [*(card.get("tags") or []), card.get("library_name"), card.get("pipeline_tag")]
        tags += [f"license:{card['license']}"] if "license" in card else []
        owner, created = repository.name.split("/")[0], repository.history(commit)[-1].date
        row = {"id": repository.name, "modelId": repository.name, "author": owner}
        row |= {"sha": commit.oid, "lastModified": commit.date, "createdAt": created}
        row |= {"private": repository.private, "gated": False, "disabled": False}
        row |= {"downloads": 0, "likes": 0, "tags": [tag for tag in tags if tag], "cardData": card}
        row |= {name: card.get(name) for name in ("library_name", "pipeline_tag", "model-index")}
        siblings = [{"rfilename": p} | f.json() for p, f in sorted(commit.files.items())]
        return row | {"siblings": siblings}

    # Revisions

    def refs(self, request: Request, repository: Repository) -> dict[str, Any]:
        def rows(folder: str, refs: dict[str, str]) -> list[dict[str, str]]:
            ref = f"refs/{folder}/"
            return [{"name": n, "ref": ref + n, "targetCommit": oid} for n, oid in refs.items()]

        body = {"branches": rows("heads", repository.branches), "converts": []}
        return body | {"tags": rows("tags", repository.tags), "pullRequests": []}

    def create_branch(self, request: Request, repository: Repository, ref: str) -> None:
        if ref in repository.branches:
            raise Refusal(409, f"Reference already exists: refs/heads/{ref}")
        repository.branches[ref] = repository.at(request.json().get("startingPoint", "main")).oid

    def create_tag(self, request: Request, repository: Repository, revision: str) -> None:
        tag = request.json()["tag"]
        if tag in repository.tags:
            raise Refusal(409, f"Tag reference exists already: refs/tags/{tag}")
        repository.tags[tag] = repository.at(revision).oid

    def delete_ref(self, request: Request, repository: Repository, what: str, ref: str) -> None:
        refs = repository.branches if what == "branch" else repository.tags
        if ref not in refs:
            raise Refusal(404, f"Invalid rev id: {ref}", "RevisionNotFound")
        if (what, ref) == ("branch", "main"):
            raise Refusal(403, "The branch main cannot be deleted")
        del refs[ref]

    def list_commits(self, request: Request, repository: Repository, revision: str) -> list[dict]:
        rows = []
        for commit in repository.history(repository.at(revision)):
            row = {"id": commit.oid, "title": commit.title, "message": commit.text}
            rows.append(row | {"date": commit.date, "authors": [{"user": commit.author}]})
        return rows

    # Reading files

    def tree(self, request: Request, repository: Repository, revision: str, path: str) -> Answer:
        commit, prefix = repository.at(revision), f"{path}/" if path else ""
        files = [p for p in sorted(commit.files) if p.startswith(prefix)]
        if prefix and not files:
            raise Refusal(404, f"{path} does not exist on {revision!r}", "EntryNotFound")
        folders = {p[:i] for p in files for i in range(len(prefix), len(p)) if p[i] == "/"}
        paths = [*sorted(folders), *files]
        if not is_true(request.query, "recursive"):
            paths = [p for p in paths if "/" not in p[len(prefix) :]]
        rows = self.rows(repository, commit, paths, is_true(request.query, "expand"))
        return Answer(200, rows, {"X-Repo-Commit": commit.oid})

    def paths_info(self, request: Request, repository: Repository, revision: str) -> list[dict]:
        commit, form = repository.at(revision), parse_qs(request.body.decode())
        paths = [p for p in form.get("paths", []) if commit.under(p)]
        return self.rows(repository, commit, paths, is_true(form, "expand"))

    def rows(self, repository: Repository, commit: Commit, paths: list[str], expand: bool) -> list:
        rows = []
        for path in paths:
            folder = {"type": "directory", "size": 0, "oid": git_oid(path.encode())}
            file = commit.files.get(path)
            row = {"path": path} | ({"type": "file"} | file.json() if file else folder)
            if expand:
                last = repository.last_change(commit, path)
                row["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
            rows.append(row)
        return rows

    def resolve(self, request: Request, repository: Repository, revision: str, path: str) -> Answer:
        commit = repository.at(revision)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            refusal = Refusal(404, "Entry not found", "EntryNotFound")
            refusal.answer.headers |= headers  # the client remembers that this commit lacks it
            raise refusal
        file = commit.files[path]
        headers["ETag"] = f'"{file.etag}"'
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
        content = self.blobs[file.sha256]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)|bytes=-(\d+)", request.headers.get("Range", ""))
        if wanted is None:
            return Answer(200, content, headers)
        first, last, tail = wanted.groups()
        start = int(first) if first else max(0, file.size - int(tail))
        stop = min(file.size, int(last) + 1) if last else file.size
        if start >= stop:
            return Answer(416, b"", headers | {"Content-Range": f"bytes */{file.size}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        return Answer(206, content[start:stop], headers)

    # Writing files

    def validate_card(self, request: Request) -> Answer:
        try:
            card, errors = read_metadata(request.json()["content"]), []
        except yaml.YAMLError as error:
            card, errors = {}, [{"message": f"Invalid YAML: {error}"}]
        if not isinstance(card, dict | None):
            errors = [{"message": "The metadata must be a mapping"}]
        missing = [{"message": "empty or missing yaml metadata in repo card"}]
        body = {"errors": errors, "warnings": [] if card or errors else missing}
        return Answer(400 if errors else 200, body)

    def preupload(self, request: Request, repository: Repository, revision: str) -> dict[str, Any]:
        commit, rows = repository.at(revision), []
        for file in request.json()["files"]:
            path, old = file["path"], commit.files.get(file["path"])
            mode = "lfs" if self.is_large(commit.files, path, file["size"]) else "regular"
            # The client does not send a file again that has this oid.
            row = {"path": path, "uploadMode": mode, "oid": old.etag if old else None}
            rows.append(row | {"shouldIgnore": False})
        return {"files": rows, "commitOid": commit.oid}

    def is_large(self, files: dict[str, File], path: str, size: int) -> bool:
        """Whether a file belongs in LFS: by size, by name, by the last word of .gitattributes."""
        large = False
        attributes = files.get(".gitattributes")
        for line in self.blobs[attributes.sha256].decode().splitlines() if attributes else []:
            pattern, *words = line.split() or [""]
            if fnmatch.fnmatchcase(path if "/" in pattern else path.split("/")[-1], pattern):
                large = "filter=lfs" in words
        return large or size >= LFS_SIZE or any(fnmatch.fnmatchcase(path, p) for p in LFS_PATTERNS)

    def lfs_batch(self, request: Request, repository: Repository) -> dict[str, Any]:
        base, rows = f"{self.url}{repository.page}.git/info/lfs/objects", []
        for each in request.json()["objects"]:
            rows.append({"oid": each["oid"], "size": each["size"]})
            if each["oid"] not in repository.lfs:  # a row without actions: nothing to upload
                addresses = {"upload": f"{base}/{each['oid']}", "verify": f"{base}/verify"}
                rows[-1]["actions"] = {name: {"href": href} for name, href in addresses.items()}
        return {"transfer": "basic", "objects": rows}

    def lfs_upload(self, request: Request, kind: str, name: str, oid: str) -> None:
        # Without a token: on the Hub, this is a signed address of the storage.
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refusal(400, "The content does not match the checksum you specified")
        self.keep(request.body, lfs=True)
        self.repositories[kind or "models", name].lfs.add(oid)

    def lfs_verify(self, request: Request, repository: Repository) -> None:
        data = request.json()
        if data["oid"] not in repository.lfs or len(self.blobs[data["oid"]]) != data["size"]:
            raise Refusal(404, "The object was not uploaded, or has another size")

    def commit(self, request: Request, repository: Repository, revision: str) -> dict[str, Any]:
        if "create_pr" in request.query:
            raise Refusal(400, "This Hub has no pull requests")
        if revision not in repository.branches:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        header, *changes = [json.loads(line) for line in request.body.splitlines()]
        header, head = header["value"], repository.at(revision)
        if not head.oid.startswith(header.get("parentCommit", "")):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)  # a copy, so that a refusal below leaves no half of a commit
        for change in changes:
            self.change(repository, files, change["key"], **change["value"])
        description = header.get("description", "")
        made = repository.add(revision, files, request.user, header["summary"], description)
        address = f"{self.url}{repository.page}/commit/{made.oid}"
        return {"success": True, "commitOid": made.oid, "commitUrl": address}

    def change(self, repository: Repository, files: dict, key: str, path: str, **value) -> None:
        """Applies one line of a commit."""
        folder = path.rstrip("/") + "/"
        if {*path.rstrip("/").split("/")} & {"", ".", "..", ".git"}:
            raise Refusal(400, f"Invalid path: {path}")
        if key == "file":
            files[path] = self.keep(base64.b64decode(value["content"]), lfs=False)
        elif key == "lfsFile" and value["oid"] in repository.lfs:
            files[path] = self.keep(self.blobs[value["oid"]], lfs=True)
        elif key == "lfsFile":
            message = "Your push was rejected: an LFS pointer points to a file that does not exist"
            raise Refusal(400, f"{message}: {path}")
        elif key == "deletedFile" and path in files:
            del files[path]
        elif key == "deletedFolder" and (gone := [p for p in files if p.startswith(folder)]):
            for each in gone:
                del files[each]
        else:
            raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")

    def keep(self, content: bytes, lfs: bool) -> File:
        sha256 = hashlib.sha256(content).hexdigest()
        self.blobs[sha256] = content
        oid = git_oid(lfs_pointer(sha256, len(content)) if lfs else content)
        return File(sha256, oid, len(content), lfs)

    # Collections

    def find_collection(self, user: str | None, slug: str, write: bool) -> dict[str, Any]:
        collection = self.collections.get(slug, {"owner": "", "private": True})
        owns = self.acts_for(user, collection["owner"])
        if collection["private"] and not owns:
            raise Refusal(404, "Collection not found")
        if write and not owns:
            raise Refusal(403 if user else 401, f"You may not change the collection {slug}")
        return collection

    def create_collection(self, request: Request) -> dict[str, Any]:
        data = request.json()
        owner, title = data["namespace"], data["title"]
        self.check_namespace(request.user, "collection", owner)
        self.check_length("description", data.get("description", ""), 150)
        for old in self.collections.values():
            if (old["owner"], old["title"]) == (owner, title):
                raise Refusal(409, "This collection already exists", slug=old["slug"])
        words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        collection = {"slug": f"{owner}/{words}-{secrets.token_hex(12)}", "owner": owner}
        collection |= {"title": title, "private": False, "theme": "orange", "items": []}
        collection |= {"position": len(self.collections), "upvotes": 0}
        self.collections[collection["slug"]] = collection
        return self.update_collection(request, collection)["data"]

    def update_collection(self, request: Request, collection: dict[str, Any]) -> dict[str, Any]:
        data = request.json()
        self.check_length("description", data.get("description", ""), 150)
        for name in {"title", "description", "private", "theme", "position"} & data.keys():
            collection[name] = data[name]
        return {"success": True, "data": self.touch(collection)}

    def check_length(self, what: str, text: str, most: int) -> None:
        if len(text) > most:
            raise Refusal(400, f"The {what} has {len(text)} characters, more than {most}")

    def touch(self, collection: dict[str, Any]) -> dict[str, Any]:
        collection["lastUpdated"] = now()
        for position, item in enumerate(collection["items"]):
            item["position"] = position
        return collection

    def delete_collection(self, request: Request, collection: dict[str, Any]) -> None:
        del self.collections[collection["slug"]]

    def list_collections(self, request: Request) -> list[dict[str, Any]]:
        owners, items, rows = request.query.get("owner"), request.query.get("item", []), []
        for each in self.collections.values():
            held = {f"{item['type']}s/{item['id']}" for item in each["items"]}
            seen = not each["private"] or self.acts_for(request.user, each["owner"])
            if seen and (owners is None or each["owner"] in owners) and held.issuperset(items):
                # The Hub lists no more than four items, and the client does the counting.
                row = {name: value for name, value in each.items() if name != "position"}
                rows.append(row | {"items": each["items"][:4]})
        return rows[: int(request.query.get("limit", ["100"])[0])]

    def add_item(self, request: Request, collection: dict[str, Any]) -> dict[str, Any]:
        data = request.json()
        kind, name = data["item"]["type"], data["item"]["id"]
        if kind in ("model", "dataset", "space"):
            self.find(request.user, f"{kind}s", name)  # what is not there is not collected
        if any((item["type"], item["id"]) == (kind, name) for item in collection["items"]):
            raise Refusal(409, f"The {kind} {name} is in this collection already")
        self.check_length("note", data.get("note", ""), 500)
        item = {"_id": secrets.token_hex(12), "id": name, "type": kind}
        collection["items"].append(item | {"note": {"text": data.get("note")}})
        return self.touch(collection)

    def update_item(self, request: Request, collection: dict[str, Any], item: str) -> dict:
        data, found = request.json(), self.find_item(collection, item)
        if "note" in data:
            self.check_length("note", data["note"], 500)
            found["note"] = {"text": data["note"]}
        if "position" in data:
            collection["items"].remove(found)
            collection["items"].insert(data["position"], found)
        return {"success": True, "data": self.touch(collection)}

    def delete_item(self, request: Request, collection: dict[str, Any], item: str) -> None:
        collection["items"].remove(self.find_item(collection, item))
        self.touch(collection)

    def find_item(self, collection: dict[str, Any], item: str) -> dict[str, Any]:
        for each in collection["items"]:
            if each["_id"] == item:
                return each
        raise Refusal(404, "Collection item not found")

    # What only tests ask for

    def plant(self, request: Request) -> dict[str, str]:
        """Commits files to a repository, made where it is missing, whatever their paths are."""
        data = request.json()
        key = "models", data["repo"]
        repository = self.repositories.setdefault(key, Repository(*key, data["private"]))
        files = dict(repository.at("main").files) if repository.branches else {}
        for path, encoded in data["files"].items():
            content = base64.b64decode(encoded)
            files[path] = self.keep(content, self.is_large(files, path, len(content)))
        return {"commit": repository.add("main", files, "plant", "Plant", "").oid}

    def add_fault(self, request: Request) -> None:
        try:
            self.faults.append(Fault(**request.json()))
        except (TypeError, ValueError, re.error) as error:
            raise Refusal(400, str(error)) from error


def is_true(form: dict[str, list[str]], name: str) -> bool:
    return form.get(name, [""])[0].lower() in ("true", "1")


NAME = r"(?P<name>[\w.-]+(?:/[\w.-]+)?)"
API = rf"/api/(?P<kind>models|datasets|spaces)/{NAME}"
PAGE = rf"/(?:(?P<kind>datasets|spaces)/)?{NAME}"
OBJECTS = rf"{PAGE}\.git/info/lfs/objects"
REVISION = r"(?P<revision>[^/]+)"
COLLECTION = r"/api/collections/(?P<slug>[^/]+/[^/]+)"
ITEM = rf"{COLLECTION}/items/(?P<item>[^/]+)"
ROUTES: list[tuple[str, str, str, Callable]] = [
    ("GET", r"/api/whoami-v2", "", HubState.whoami),
    ("POST", r"/api/validate-yaml", "", HubState.validate_card),
    ("POST", r"/api/repos/create", "", HubState.create),
    ("DELETE", r"/api/repos/delete", "", HubState.delete),
    ("GET", r"/api/(?P<kind>models|datasets|spaces)", "", HubState.list_repositories),
    ("GET", API, "read", HubState.info),
    ("GET", rf"{API}/revision/{REVISION}", "read", HubState.info),
    ("PUT", rf"{API}/settings", "write", HubState.set_settings),
    ("GET", rf"{API}/auth-check", "read", lambda hub, _, repository: None),
    ("GET", rf"{API}/auth-check/write", "write", lambda hub, _, repository: None),
    ("GET", rf"{API}/refs", "read", HubState.refs),
    ("POST", rf"{API}/branch/(?P<ref>[^/]+)", "write", HubState.create_branch),
    ("POST", rf"{API}/tag/{REVISION}", "write", HubState.create_tag),
    ("DELETE", rf"{API}/(?P<what>branch|tag)/(?P<ref>[^/]+)", "write", HubState.delete_ref),
    ("GET", rf"{API}/commits/{REVISION}", "read", HubState.list_commits),
    ("GET", rf"{API}/tree/{REVISION}(?:/(?P<path>.+))?", "read", HubState.tree),
    ("POST", rf"{API}/paths-info/{REVISION}", "read", HubState.paths_info),
    ("GET", rf"{PAGE}/(?:resolve|raw)/{REVISION}/(?P<path>.+)", "read", HubState.resolve),
    ("POST", rf"{API}/preupload/{REVISION}", "write", HubState.preupload),
    ("POST", rf"{OBJECTS}/batch", "write", HubState.lfs_batch),
    ("PUT", rf"{OBJECTS}/(?P<oid>[0-9a-f]+)", "", HubState.lfs_upload),
    ("POST", rf"{OBJECTS}/verify", "write", HubState.lfs_verify),
    ("POST", rf"{API}/commit/{REVISION}", "write", HubState.commit),
    ("GET", r"/api/collections", "", HubState.list_collections),
    ("POST", r"/api/collections", "", HubState.create_collection),
    ("GET", COLLECTION, "read", lambda hub, _, collection: collection),
    ("PATCH", COLLECTION, "write", HubState.update_collection),
    ("DELETE", COLLECTION, "write", HubState.delete_collection),
    ("POST", rf"{COLLECTION}/items", "write", HubState.add_item),
    ("PATCH", ITEM, "write", HubState.update_item),
    ("DELETE", ITEM, "write", HubState.delete_item),
    ("POST", r"/_plant", "", HubState.plant),
    ("POST", r"/_faults", "", HubState.add_fault),
    ("GET", r"/_faults", "", lambda hub, _: [*map(dataclasses.asdict, hub.faults)]),
    ("DELETE", r"/_faults", "", lambda hub, _: hub.faults.clear()),
    ("GET", r"/_log", "", lambda hub, _: hub.log),
    ("DELETE", r"/_log", "", lambda hub, _: hub.log.clear()),
]


# HTTP


class Server(ThreadingHTTPServer):
    """A thread for each connection; so many may wait to be accepted when clients have threads."""

    request_queue_size = 64


class Handler(BaseHTTPRequestHandler):
    """One connection: a request read to its end, carried out, answered; and the next."""

    state: HubState
    protocol_version = "HTTP/1.1"
    # Head and body are two writes; without this, the second waits for the first's acknowledgement.
    disable_nagle_algorithm = True

    def log_message(self, *args) -> None:
        """The state keeps the log; standard error is for what is wrong with this file."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # clients may leave when they like
            super().handle()

    def serve(self) -> None:
        path, _, query = self.path.partition("?")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        user = self.state.tokens.get(token, "") if token else None
        request = Request(self.command, path, parse_qs(query), self.headers, user)
        entry = {"method": self.command, "path": unquote(path), "query": query, "user": user}
        entry |= {"status": None, "received": 0, "sent": 0}
        faults: dict[str, Fault] = {}
        if not path.startswith("/_"):
            with self.state.lock:
                self.state.log.append(entry)
                for fault in self.state.faults:
                    if fault.kind not in faults and fault.takes(request):
                        faults[fault.kind] = fault
        cut = faults.get("cut")
        size = int(self.headers.get("Content-Length", 0))
        cuts_request = cut and (cut.side or ("request" if size else "response")) == "request"
        request.body = self.rfile.read(min(size, cut.after_bytes) if cuts_request else size)
        entry["received"] = len(request.body)
        if not cuts_request:
            if len(request.body) < size:
                raise ConnectionError("the client left in the middle of its request")
            self.send(request, entry, faults)
        if cut:
            self.hang_up(cut)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = serve

    def send(self, request: Request, entry: dict[str, Any], faults: dict[str, Fault]) -> None:
        answer = self.carry_out(request, faults)
        is_bytes = isinstance(answer.body, bytes)
        # A date in a card is a date for YAML, and text for JSON.
        payload = answer.body if is_bytes else json.dumps(answer.body, default=str).encode()
        headers = {"Content-Type": "application/octet-stream" if is_bytes else "application/json"}
        headers |= {"Content-Length": str(len(payload))} | answer.headers
        if corrupt := faults.get("corrupt"):
            payload = corrupt.corrupt(payload)
        if cut := faults.get("cut"):
            payload = payload[: cut.after_bytes]
        if request.method == "HEAD":
            payload = b""
        # Logged before it is sent: a client that has its answer may read the log.
        entry |= {"status": answer.status, "sent": len(payload)}
        self.send_response(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)

    def carry_out(self, request: Request, faults: dict[str, Fault]) -> Answer:
        try:
            if "Transfer-Encoding" in request.headers:
                self.close_connection = True
                raise Refusal(411, "This Hub reads no chunked bodies; its client sends none")
            if delay := faults.get("delay"):
                time.sleep(delay.seconds)
            if hold := faults.get("hold"):
                hold.hold()
            if status := faults.get("status"):
                refusal = Refusal(status.status, status.error)
                refusal.answer.headers |= status.headers
                raise refusal
            answer = self.state.carry_out(request)
        except Refusal as refusal:
            return refusal.answer
        except Exception:  # a mistake in this file, or a request that the client never sends
            traceback.print_exc()
            return Refusal(500, "The tests' Hub failed; its standard error says where").answer
        if listing := faults.get("listing"):
            listing.list_extra(answer.body)
        return answer

    def hang_up(self, cut: Fault) -> None:
        self.close_connection = True
        if cut.reset:
            # Closing without lingering resets; detached, because the server would end it first.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--user", action="append", default=[], help="NAME:TOKEN; repeatable")
    parser.add_argument("--organization", action="append", default=[], help="NAME:USER,USER,...")
    arguments = parser.parse_args()
    tokens = {token: name for name, _, token in (each.partition(":") for each in arguments.user)}
    organizations = dict(each.split(":") for each in arguments.organization)
    state = HubState(tokens, {name: users.split(",") for name, users in organizations.items()})
    Handler.state = state
    server = Server(("127.0.0.1", arguments.port), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"

    def stop_with_the_test() -> None:
        # The pipe closes when the test ends, however it ends. os.read, because a thread that waits
        # inside sys.stdin keeps a lock which the interpreter wants when it leaves.
        while os.read(0, 4096):
            pass
        server.shutdown()

    threading.Thread(target=stop_with_the_test, daemon=True).start()
    sys.stdout.write(json.dumps({"url": state.url}) + "\n")
    sys.stdout.flush()
    server.serve_forever(poll_interval=0.05)


# What a test holds


class Hub:
    """A running Hub, as a test sees it; a context manager.

    Args:
        users: Maps each user to a token.
        organizations: Maps each organization to its members, who may all write to it.

    Attributes:
        url: Address of the Hub.
        tokens: The users' tokens.
    """

    def __init__(self, users: dict[str, str], organizations: dict[str, list[str]] | None = None):
        self.tokens = dict(users)
        self.organizations = organizations or {}
        self.url = ""

    def __enter__(self) -> "Hub":
        command = [sys.executable, __file__]
        for name, token in self.tokens.items():
            command += ["--user", f"{name}:{token}"]
        for name, users in self.organizations.items():
            command += ["--organization", f"{name}:{','.join(users)}"]
        pipe = subprocess.PIPE
        # In a session of its own: Ctrl-C is for the test, and the pipe tells the server.
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
        self._folder = tempfile.TemporaryDirectory(prefix="hub-")
        line = self._process.stdout.readline()
        if not line:
            self.__exit__()
            raise RuntimeError("the Hub did not start; its standard error says why")
        self.url = json.loads(line)["url"]
        return self

    def __exit__(self, *error) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()

    def fault(self, kind: str, match: str, **options) -> None:
        """Adds a fault; `Fault` says which kinds and options there are."""
        self._control("POST", "/_faults", {"kind": kind, "match": match, **options})

    def faults(self) -> list[dict[str, Any]]:
        """The faults with their `hits`, for a test to see that its fault happened."""
        return self._control("GET", "/_faults")

    def clear_faults(self) -> None:
        self._control("DELETE", "/_faults")

    def log(self, match: str = "") -> list[dict[str, Any]]:
        """The requests in order of arrival whose line, "GET /alice/net/...", has a match.

        Each has method, path, query, user (None without a token, "" with a wrong one), status (None
        where there was no answer, or is none yet), received and sent (bytes of the two bodies).
        """
        log = self._control("GET", "/_log")
        return [entry for entry in log if re.search(match, f"{entry['method']} {entry['path']}")]

    def clear_log(self) -> None:
        self._control("DELETE", "/_log")

    def plant(self, repo: str, files: dict[str, bytes], private: bool = False) -> str:
        """Commits files to a repository, whatever their paths are, and returns the commit."""
        encoded = {path: base64.b64encode(content).decode() for path, content in files.items()}
        data = {"repo": repo, "files": encoded, "private": private}
        return self._control("POST", "/_plant", data)["commit"]

    def environment(self, token: str | None = None, cache: Path | None = None) -> dict[str, str]:
        """What to add to os.environ for a client: this Hub, a token or none, a home of its own.

        Args:
            token: Who the client is.
            cache: Folder for the client's home, downloads and modules; None for a fresh one.
        """
        home = str(cache or tempfile.mkdtemp(dir=self._folder.name))
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HOME": home,
            "HF_HUB_CACHE": f"{home}/hub",
            "HF_MODULES_CACHE": f"{home}/modules",
            "HF_TOKEN_PATH": f"{home}/token",
            "HF_TOKEN": token or "",  # empty rather than absent, to hide the developer's own
            "HUGGING_FACE_HUB_TOKEN": "",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0" if token else "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def _control(self, method: str, path: str, data: dict[str, Any] | None = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, method=method)
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(json.load(error)["error"]) from None


if __name__ == "__main__":
    main()
