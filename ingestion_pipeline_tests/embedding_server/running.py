"""The server while a block lasts: in a thread beside the test, or in a process of its own.

In a process it takes no time from what is measured; in a thread it starts at once.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import httpx2
import uvicorn

from ingestion_pipeline.embedding.embedder import Embedder
from ingestion_pipeline_tests.embedding_server import counters as counters_module
from ingestion_pipeline_tests.embedding_server import line
from ingestion_pipeline_tests.embedding_server.app import EmbeddingServer
from ingestion_pipeline_tests.embedding_server.behaviour import Behaviour
from ingestion_pipeline_tests.embedding_server.counters import Counters

ANNOUNCEMENT = "Listening on "
HOST = "127.0.0.1"

_SECONDS = 30.0
_REPOSITORY = Path(__file__).parents[2]


class Server(Protocol):
    """A server that runs."""

    @property
    def base_url(self) -> str:
        """What a client is configured with; ends with `/v1`."""
        ...

    @property
    def counters(self) -> Counters:
        """What has been served: live in a thread, a copy from a process."""
        ...

    @property
    def behaviour(self) -> Behaviour:
        """How it behaves: live in a thread, a copy without the key from a process."""
        ...

    def behave(self, **changes: Any) -> None:
        """Change fields of the behaviour; `ValueError` if that cannot be."""
        ...

    def reset(self) -> None:
        """Count anew."""
        ...

    def settle(self, seconds: float = _SECONDS) -> Counters:
        """The counters once nothing is in flight; `TimeoutError` if that takes longer."""
        ...


@dataclass(frozen=True)
class ServerInThread:
    """Counters and behaviour are the server's own."""

    base_url: str
    _app: EmbeddingServer

    @property
    def counters(self) -> Counters:
        """Live."""
        return self._app.counters

    @property
    def behaviour(self) -> Behaviour:
        """Live."""
        return self._app.behaviour

    def behave(self, **changes: Any) -> None:
        """Change fields of the behaviour."""
        self._app.behaviour.change(changes)

    def reset(self) -> None:
        """Count anew."""
        self._app.counters.reset()

    def settle(self, seconds: float = _SECONDS) -> Counters:
        """The counters once nothing is in flight."""
        return _settled(self, seconds)


@dataclass(frozen=True)
class ServerInProcess:
    """Counters and behaviour are asked for."""

    base_url: str
    process: subprocess.Popen[str]

    @property
    def counters(self) -> Counters:
        """A copy."""
        return counters_module.from_json(self._ask("GET", "/counters"))

    @property
    def behaviour(self) -> Behaviour:
        """A copy, without the key."""
        behaviour = Behaviour()
        behaviour.change(self._ask("GET", "/control"))
        return behaviour

    def behave(self, **changes: Any) -> None:
        """Change fields of the behaviour."""
        self._ask("POST", "/control", changes)

    def reset(self) -> None:
        """Count anew."""
        self._ask("POST", "/counters/reset")

    def settle(self, seconds: float = _SECONDS) -> Counters:
        """The counters once nothing is in flight."""
        return _settled(self, seconds)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        url = self.base_url.removesuffix("/v1") + path
        answer = httpx2.request(method, url, json=body, timeout=_SECONDS, trust_env=False)
        if answer.is_error:
            raise ValueError(answer.text)
        return json.loads(answer.content)


def _settled(server: Server, seconds: float) -> Counters:
    end = time.monotonic() + seconds
    while (counters := server.counters).in_flight:
        if time.monotonic() > end:
            raise TimeoutError(f"{counters.in_flight} requests are in flight after {seconds} s")
        time.sleep(0.01)
    return counters


class Uvicorn(uvicorn.Server):
    """Stops at once, whoever still waits for an answer."""

    def __init__(self, app: EmbeddingServer) -> None:
        super().__init__(
            uvicorn.Config(
                app.application(),
                http=line.Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                # A client's pool never picks up a line that is being closed, unless told to here.
                timeout_keep_alive=600,
            )
        )
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Hang up on everyone."""
        self._app.stop()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await super().shutdown(sockets)


def listening(port: int = 0, host: str = HOST) -> tuple[socket.socket, str]:
    """A socket at this port, 0 for a free one, and the base_url that leads there."""
    bound = socket.socket(socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound, f"http://{host}:{bound.getsockname()[1]}/v1"


@contextmanager
def running(
    behaviour: Behaviour | None = None, *, engines: Mapping[str, Embedder] | None = None
) -> Iterator[ServerInThread]:
    """The server on a free port of this machine, in a thread, until the block ends."""
    app = EmbeddingServer(behaviour or Behaviour(), engines)
    server = Uvicorn(app)
    bound, base_url = listening()
    with bound:
        thread = threading.Thread(target=server.run, args=([bound],), name=f"server at {base_url}")
        thread.start()
        try:
            _wait_until_started(server, thread)
            yield ServerInThread(base_url, app)
        finally:
            server.should_exit = True
            thread.join()


def _wait_until_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    while not server.started:
        assert thread.is_alive(), "the server has not started"
        time.sleep(0.002)


@contextmanager
def running_process(behaviour: Behaviour | None = None) -> Iterator[ServerInProcess]:
    """The server on a free port of this machine, in a process, until the block ends."""
    command = [sys.executable, "-m", __package__, "--port", "0"]
    with subprocess.Popen(
        command, cwd=_REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            announced = process.stdout.readline().strip()
            assert announced.startswith(ANNOUNCEMENT), f"the server has not started: {announced}"
            server = ServerInProcess(announced.removeprefix(ANNOUNCEMENT), process)
            if behaviour is not None:
                server.behave(**_changes(behaviour))
            yield server
        finally:
            process.terminate()
            process.wait(_SECONDS)


def _changes(behaviour: Behaviour) -> dict[str, Any]:
    default = Behaviour()
    changes = {
        each.name: getattr(behaviour, each.name)
        for each in fields(behaviour)
        if getattr(behaviour, each.name) != getattr(default, each.name)
    }
    if "resizable" in changes:
        changes["resizable"] = sorted(behaviour.resizable)
    return changes
