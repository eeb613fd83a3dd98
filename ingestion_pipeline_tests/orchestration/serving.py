"""The real web server and daemon over known models, asked by GraphQL, and killed where wanted."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingestion_pipeline_tests.orchestration.conftest import REPOSITORY

MODULE = "ingestion_pipeline_tests.orchestration.served_definitions"

_LAUNCH_RUN = """mutation ($parameters: ExecutionParams!) {
  launchRun(executionParams: $parameters) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""


@dataclass(frozen=True)
class Served:
    """A deployment: a web server, a daemon, and what they start."""

    port: int
    processes: list[subprocess.Popen[bytes]]

    def ask(self, query: str, **variables: object) -> Any:
        """What the web server answers to a query."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            answer = json.load(response)
        assert "errors" not in answer, answer
        return answer["data"]

    def launch(self, job: str, tags: Mapping[str, str]) -> str:
        """Queue a run of a job, as the UI does; its id."""
        answer = self.ask(
            _LAUNCH_RUN,
            parameters={
                "selector": {
                    "repositoryLocationName": MODULE,
                    "repositoryName": "__repository__",
                    "jobName": job,
                },
                "mode": "default",
                "executionMetadata": {
                    "tags": [{"key": key, "value": value} for key, value in tags.items()]
                },
            },
        )["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def kill(self) -> None:
        """End all of it with SIGKILL: web server, daemon, code servers and run workers."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def stop(self) -> None:
        """End it as an administrator would."""
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def is_up(self) -> bool:
        """Whether the web server answers."""
        try:
            return bool(self.ask("{ version }"))
        except OSError:
            return False


@contextmanager
def served() -> Iterator[Served]:
    """A deployment on a free port, in the environment of this process."""
    port = _free_port()
    binaries = Path(sys.executable).parent
    location = ["-m", MODULE, "-d", str(REPOSITORY)]
    commands: list[list[str | Path]] = [
        [binaries / "dagster-webserver", "-h", "127.0.0.1", "-p", str(port), *location],
        [binaries / "dagster-daemon", "run", *location],
    ]
    processes = [
        subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for command in commands
    ]
    deployment = Served(port, processes)
    try:
        until(deployment.is_up, "the web server", 60)
        yield deployment
    finally:
        deployment.stop()


def until(done: Callable[[], bool], what: str, seconds: float = 150) -> None:
    """Wait for something, and fail where it does not come."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
