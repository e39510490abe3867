"""A W&B server on loopback that answers what the client asks and remembers it; or one that refuses, hangs or dies."""

from __future__ import annotations

import json
import re
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {"name": "medgan", "entity": {"name": "clinic"}}
PROJECT_NODE = {"id": "p", "createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False, "user": None}


@dataclass
class Seen:
    """What a client told the server."""

    url: str = ""
    operations: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """GraphQL operations with their variables."""
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Rows of each run."""
    summary: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    """Exit codes of finished runs."""
    uploads: dict[str, bytes] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    """API keys that came with requests."""
    requests: int = 0

    def of(self, name: str) -> list[dict[str, Any]]:
        """Variables of each GraphQL operation of a name."""
        return [variables for operation, variables in self.operations if operation == name]


def answer(seen: Seen, query: str, variables: dict[str, Any]) -> dict[str, Any]:
    """What the client's GraphQL operation gets back."""
    operation = re.search(r"(?:query|mutation)\s+(\w+)", query)
    name = operation.group(1) if operation else query.strip()[:40]
    variables = variables.get("input", variables)
    seen.operations.append((name, variables))
    if name in ("Viewer", "ViewerApiKey"):
        viewer = {"id": "u", "entity": "clinic", "username": "clinic", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer}
    if name == "RunResumeStatus":
        run = variables["name"]
        known = seen.history.get(run)
        bucket = {"name": run, "historyLineCount": len(known or ()), "eventsLineCount": 0, "logLineCount": 0}
        bucket |= {"historyTail": json.dumps([json.dumps(row) for row in (known or [])[-1:]]), "eventsTail": "[]"}
        bucket |= {
            "summaryMetrics": json.dumps(seen.summary.get(run, {})),
            "config": "{}",
            "tags": [],
            "wandbConfig": '{"t": {"4": "3.11"}}',
        }
        project = {"id": "p", "name": "medgan", "entity": {"id": "e", "name": "clinic"}}
        return {"model": project | {"bucket": bucket if known else None}}
    if name == "UpsertBucket":
        run = variables.get("name") or "run"
        bucket = {"id": run, "name": run, "displayName": variables.get("displayName") or run, "description": None}
        bucket |= {"config": "{}", "sweepName": None, "project": PROJECT | {"id": "p"}, "historyLineCount": 0}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}
    if name == "ServerInfo":
        return {"serverInfo": {"cliVersionInfo": {"max_cli_version": "9.9.9"}, "latestLocalVersionInfo": None}}
    if name == "CreateRunFiles":
        files = [{"name": f, "uploadUrl": f"{seen.url}/upload/{variables['run']}/{f}"} for f in variables["files"]]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
    if name == "CreateArtifact":
        identity = f"{variables['artifactTypeName']}:{variables['artifactCollectionName']}"
        sequence = {"id": "s", "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": identity, "state": "PENDING", "artifactSequence": sequence}}}
    if name in ("CreateArtifactManifest", "UpdateArtifactManifest"):
        url = f"{seen.url}/upload/{variables['artifactID']}/manifest"
        file = {"id": "f", "name": "wandb_manifest.json", "uploadUrl": url, "uploadHeaders": []}
        key = name[0].lower() + name[1:]
        return {
            key: {
                "artifactManifest": {"id": variables["artifactID"], "displayName": "m", "uploadUrl": url, "file": file}
            }
        }
    if name == "CreateArtifactFiles":
        edges = []
        for file in variables["artifactFiles"]:
            url = f"{seen.url}/upload/{file['artifactID']}/{file['name']}"
            node = {"id": file["name"], "name": file["name"], "displayName": file["name"], "storagePath": "x"}
            node |= {"uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}
            edges.append({"node": node | {"artifact": {"id": file["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}
    if name == "CommitArtifact":
        return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "d"}}}
    if name == "UseArtifact":
        return {"useArtifact": {"artifact": {"id": variables.get("artifactID", ""), "digest": "d"}}}
    if name == "NotifyScriptableRunAlert":
        return {"notifyScriptableRunAlert": {"success": True}}
    if name == "ProjectInternalId":
        return {"project": {"id": "p", "internalId": "17"}}
    if name == "GetProjects":
        page = {"endCursor": None, "hasNextPage": False}
        node = PROJECT_NODE | {"name": "medgan", "entityName": variables.get("entity")}
        return {"models": {"edges": [{"node": node, "cursor": "c"}], "pageInfo": page}}
    if name == "upsertView":
        project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
        kept = {key: variables[key] for key in ("name", "displayName", "description", "spec", "type")}
        return {"upsertView": {"view": {"id": "v", "updatedAt": None, "project": project, **kept}, "inserted": True}}
    return {}


@contextmanager
def serve(fault: str = "", address: str = "127.0.0.1") -> Iterator[Seen]:
    """fault: "refuses" with 500; "hangs": takes requests and never answers; "dies": does so after three answers.
    address: of this machine; another than loopback for test hosts, who reach it by their bridge."""
    seen, release = Seen(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            seen.requests += 1
            scheme, _, given = self.headers.get("Authorization", "").partition(" ")
            if scheme == "Basic":
                seen.keys.add(b64decode(given).decode().partition(":")[2])
            if fault == "hangs" or (fault == "dies" and seen.requests > 3):
                release.wait()
                self.close_connection = True
                return
            if fault == "refuses":
                return self.reply(500, {"error": "no"})
            if self.path.startswith("/upload/"):
                seen.uploads[self.path.removeprefix("/upload/")] = body
                return self.reply(200, {})
            if self.path == "/graphql":
                asked = json.loads(body)
                return self.reply(200, {"data": answer(seen, asked["query"], asked.get("variables") or {})})
            if self.path.endswith("/file_stream"):
                self.stream(self.path.split("/")[-2], json.loads(body))
            self.reply(200, {})

        do_POST = do_GET = do_PUT = handle_one

        def stream(self, run: str, told: dict[str, Any]) -> None:
            for file, part in (told.get("files") or {}).items():
                rows = [json.loads(line) for line in part["content"]]
                if file == "wandb-history.jsonl":
                    known = seen.history.setdefault(run, [])
                    known[part["offset"] : part["offset"] + len(rows)] = rows
                elif file == "wandb-summary.json":
                    seen.summary[run] = rows[-1]
            if told.get("complete"):
                seen.done[run] = told.get("exitcode", 0)

        def reply(self, code: int, tree: dict[str, Any]) -> None:
            content = json.dumps(tree).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer((address, 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a client that was ended closes its connections
    seen.url = f"http://{address}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        release.set()
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    with serve() as here:
        print(here.url, flush=True)
        time.sleep(600)
