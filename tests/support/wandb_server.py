"""A server of Weights & Biases for tests: as much of its protocol as one run, and one sweep, ask for.

It keeps what a real one keeps of a run: the lines of its history by their offsets, its config, its state. It can be
shut (no one listens) or struck dumb (connections are taken and never answered).
"""

import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

KEY = "0123456789abcdef" * 2 + "01234567"


@dataclass
class Run:
    """What the server knows of one run."""

    lines: dict[str, dict[int, str]] = field(default_factory=dict)  # of each file, by offset
    config: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    preempting: bool = False
    files: set[str] = field(default_factory=set)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows, in their order."""
        found = self.lines.get("wandb-history.jsonl", {})
        return [json.loads(found[offset]) for offset in sorted(found)]


class Server:
    """Listens on a free port of the loopback device as long as the `with` lasts.

    Args:
        refuses: the status that every question is answered with; 0 answers it.
    """

    def __init__(self, refuses: int = 0) -> None:
        self.runs: dict[str, Run] = {}
        self.sweeps: list[dict[str, Any]] = []
        self.trials: list[dict[str, Any]] = []  # what an agent is told to do
        self.refuses = refuses
        self.heard = 0
        self.dumb, self._end = threading.Event(), threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.heard += 1
                if server.dumb.is_set():
                    server._end.wait()
                    return
                self._send(server._answer(self.path, body), server.refuses or 200)

            do_GET = do_PUT = do_POST  # noqa: N815 the library's names

            def _send(self, answer: dict[str, Any], status: int) -> None:
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None: ...

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None: ...  # clients that go away

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self.environment = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def __enter__(self) -> "Server":
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shut()

    def shut(self) -> None:
        """No one listens any more, and what was being said breaks off."""
        self._end.set()
        self.refuses = self.refuses or 503
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, path: str, body: bytes) -> dict[str, Any]:
        if self.refuses:
            return {"errors": [{"message": "refused"}]}
        if path == "/graphql":
            asked = json.loads(body)
            kind = asked.get("operationName") or re.findall(r"\w+", asked["query"])[1]
            answer = getattr(self, f"_{kind}", None)
            return {"data": answer(asked.get("variables") or {}) if answer else {}}
        if stream := re.fullmatch(r"/files/.*/(\w+)/file_stream", path):
            self._stream(self.runs.setdefault(stream[1], Run()), json.loads(body))
        return {}

    def _stream(self, run: Run, sent: dict[str, Any]) -> None:
        for name, chunk in sent.get("files", {}).items():
            for number, line in enumerate(chunk["content"]):
                run.lines.setdefault(name, {})[chunk["offset"] + number] = line
        run.preempting = run.preempting or sent.get("preempting", False)
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]

    def _Viewer(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}",
                           "teams": {"edges": []}}}  # fmt: skip

    def _ServerFeaturesQuery(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _RunResumeStatus(self, asked: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(asked["name"])
        if run is None:
            return {"model": {"id": "p", "name": "p", "bucket": None}}
        tails = {f"{kind}Tail": json.dumps([json.dumps(row) for row in run.history[-1:]] if kind == "history" else [])
                 for kind in ("history", "events")}  # fmt: skip
        counts = {f"{kind}LineCount": len(run.lines.get(f"wandb-{kind}.jsonl", {})) for kind in ("history", "events")}
        bucket = {"id": "b", "name": asked["name"], "displayName": asked["name"], "config": json.dumps(run.config),
                  "summaryMetrics": "{}", "logLineCount": 0, "tags": [], "notes": None, "group": None, "jobType": None,
                  "wandbConfig": json.dumps({"t": {}}), **tails, **counts}  # fmt: skip
        return {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}, "bucket": bucket}}

    def _UpsertBucket(self, asked: dict[str, Any]) -> dict[str, Any]:
        fresh = asked["name"] not in self.runs
        run = self.runs.setdefault(asked["name"], Run())
        run.config.update(json.loads(asked.get("config") or "{}"))
        project = {"id": "p", "name": asked.get("project") or "p", "entity": {"id": "e", "name": "me"}}
        bucket = {"id": "b", "name": asked["name"], "displayName": asked.get("displayName") or asked["name"],
                  "description": "", "config": json.dumps(run.config), "sweepName": asked.get("sweep"),
                  "project": project, "historyLineCount": len(run.history)}  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": fresh}}

    def _CreateRunFiles(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.runs[asked["run"]].files |= set(asked["files"])
        files = [{"name": name, "uploadUrl": f"{self.url}/storage/{name}"} for name in asked["files"]]
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}

    def _UpsertSweep(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.sweeps.append(yaml.safe_load(asked["config"]))
        project = {"id": "p", "name": asked["projectName"] or "p", "entity": {"id": "e", "name": "me"}}
        return {"upsertSweep": {"sweep": {"name": "s", "project": project}, "configValidationWarnings": []}}

    def _SweepWithRuns(self, asked: dict[str, Any]) -> dict[str, Any]:
        sweep = {
            "id": "s",
            "name": "s",
            "state": "RUNNING",
            "config": json.dumps(self.sweeps[-1]),
            "runs": {"edges": []},
        }
        return {"project": {"sweep": sweep}}

    def _CreateAgent(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": "a"}}}

    def _Heartbeat(self, asked: dict[str, Any]) -> dict[str, Any]:
        commands, self.trials = self.trials, []
        return {"agentHeartbeat": {"agent": {"id": "a"}, "commands": json.dumps(commands)}}
