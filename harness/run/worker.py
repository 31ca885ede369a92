"""What each of several processes of a run does: jobs that it is given, and it tells of them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from harness.base.errors import HarnessError
from harness.base.heard_warnings import hear_warnings
from harness.base.stopping import stopping
from harness.run.runner import Runner
from harness.run.workers import Orders
from harness.store.store import Store


@dataclass(frozen=True)
class Telling:
    """A :class:`~harness.base.progress.Progress` at the other end of a connection."""

    connection: Connection

    def message(self, text: str) -> None:
        self.connection.send(("message", text))

    def begin(self, stage: str, total: int) -> None:
        self.connection.send(("begin", stage, total))

    def advance(self, done: int, loss: float | None = None) -> None:
        self.connection.send(("advance", done, loss))

    def finish(self) -> None:
        self.connection.send(("finish",))


def work(connection: Connection, orders: Orders) -> None:
    """Do jobs until there are none, or SIGTERM comes, or the process that gives them is gone."""
    for name, level in orders.loud.items():
        logging.getLogger(name).setLevel(level)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with stopping() as asked:
        try:
            _work(connection, orders)
        except HarnessError as error:
            connection.send(("refused", error.where, error.found, error.expected, error.fix))
            connection.recv()  # nobody reads what a process said that is gone
        except KeyboardInterrupt:
            raise SystemExit(asked.status) from None
        except (EOFError, ConnectionError):  # nobody listens
            raise SystemExit(1) from None


def _work(connection: Connection, orders: Orders) -> None:
    telling = Telling(connection)
    with hear_warnings(lambda text: connection.send(("warning", text))):
        runner = Runner(orders.plan, Store(orders.runs), orders.folder, telling, orders.unsafe)
        with runner.store.in_use():
            while (given := connection.recv()) is not None:
                job, failures = given
                runner.failures.update(failures)
                runner.make(job)
                connection.send(("done", dict(runner.failures)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        with suppress(ProcessLookupError):
            os.kill(os.getpid(), signal.SIGTERM)
