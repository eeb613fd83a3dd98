"""Jobs at work beside the caller: launched one by one, landed in the order in which they end.

A local model works in the caller's own thread, one job at a time, when its result is waited for. An
endpoint on the network has many jobs at once, each in a thread. What a job is stands elsewhere.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from ingestion_pipeline.errors import InterruptedRunError

Job = TypeVar("Job")


@dataclass(frozen=True)
class Lane:
    """Jobs that count together: those of one endpoint, or of this process's models.

    `limit` says how many of them may be at work now; it may change at any time.
    """

    name: str = "this process"
    limit: Callable[[], int] = lambda: 1
    threads: bool = False


LOCAL = Lane()


class Flight(Generic[Job]):
    """Does `work` with each job that is launched; `work` keeps whatever it raises in the job.

    `threads` False: in the caller's thread, when a job is landed. `say` is called in the caller's
    thread with what jobs have said through `Flight.say`.
    """

    def __init__(
        self, work: Callable[[Job], None], *, threads: bool, say: Callable[[str], None]
    ) -> None:
        self._work = work
        self._threads = threads
        self._say = say
        self._todo: deque[Job] = deque()
        self._news: SimpleQueue[Job | _Said] = SimpleQueue()
        self._lanes: dict[int, str] = {}
        self._at_work: Counter[str] = Counter()
        self._flying = 0
        self._given_up = threading.Event()

    def __len__(self) -> int:
        """Jobs that are launched and not landed."""
        return self._flying

    def has_room(self, lane: Lane) -> bool:
        """Whether another job of this lane may be launched."""
        return self._at_work[lane.name] < max(1, lane.limit())

    def launch(self, job: Job, lane: Lane) -> None:
        """Begin a job."""
        self._lanes[id(job)] = lane.name
        self._at_work[lane.name] += 1
        self._flying += 1
        if self._threads:
            # A thread of its own and not of a pool: at the end of the process, nobody waits for it.
            # Where the system has none to give, the job is done when it is landed.
            with suppress(RuntimeError):
                threading.Thread(target=self._do, args=(job,), daemon=True).start()
                return
        self._todo.append(job)

    def land(self, seconds: float | None = None) -> Job | None:
        """The next job that has ended, waited for; None if none does in so many `seconds`."""
        if self._todo:
            self._do(self._todo.popleft())
        while True:
            try:
                news = self._news.get(timeout=seconds)
            except Empty:
                return None
            if isinstance(news, _Said):
                self._say(news.text)
                continue
            self._flying -= 1
            return news

    def free(self, job: Job) -> None:
        """Make room for another: what has come of a landed job is in safety."""
        self._at_work[self._lanes.pop(id(job))] -= 1

    def say(self, text: str) -> None:
        """For jobs: have something said in the caller's thread."""
        self._news.put(_Said(text))

    def sleep(self, seconds: float) -> None:
        """For jobs: wait, unless the flight is given up; then `InterruptedRunError`."""
        if self._given_up.wait(seconds):
            raise InterruptedRunError("The run has been stopped.")

    def give_up(self) -> None:
        """Forget jobs that have not begun, and let those that wait end at once.

        Those at work end when their request does.
        """
        self._given_up.set()
        while self._todo:
            self._flying -= 1
            self.free(self._todo.pop())

    def _do(self, job: Job) -> None:
        self._work(job)
        self._news.put(job)


@dataclass(frozen=True)
class _Said:
    text: str
