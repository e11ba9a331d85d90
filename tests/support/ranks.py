"""The processes of a gloo group, in which tests run their checks. They are started once and serve every test."""

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist

STEP_TIMEOUT = timedelta(seconds=60)
"""After which a collective that a rank waits for fails."""
CHECK_SECONDS = 180
"""After which a check is given up, and with it the processes."""
FOLLOW_SECONDS = 10
"""What the other ranks get to fail in after one has failed."""


def _serve(rank: int, count: int, rendezvous: str, connection: Connection) -> None:
    """Runs one (function, arguments) after the other and answers with the traceback, or None."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=count, timeout=STEP_TIMEOUT
    )
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            break
        torch.manual_seed(0)
        try:
            function(*arguments)
        except Exception:
            connection.send(traceback.format_exc())
        else:
            connection.send(None)
    dist.destroy_process_group()


class Ranks:
    """The processes, started when the first check comes and again after one that failed."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._connections: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str]

    def run(self, function: Callable[..., None], *arguments: Any) -> None:
        """Runs a function of a module on every rank at once; fails with what each rank raised."""
        if not self._processes:
            self._start()
        for connection in self._connections:
            connection.send((function, arguments))
        answers = self._answers()
        if any(answer is not None for answer in answers):
            self.stop()
            raise AssertionError("".join(f"\nrank {rank}: {answer or 'passed'}" for rank, answer in enumerate(answers)))

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")  # torch is imported once, for all of them
        context.set_forkserver_preload(["torch", "torch.distributed.tensor", "unfoldconv", "pytest"])
        self._folder = tempfile.TemporaryDirectory()
        rendezvous = str(Path(self._folder.name) / "rendezvous")
        for rank in range(self.count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.count, rendezvous, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)

    def _answers(self) -> list[str | None]:
        """What each rank says."""
        answers: list[str | None] = ["no answer"] * self.count
        waiting = dict(zip(self._connections, range(self.count), strict=True))
        deadline = monotonic() + CHECK_SECONDS
        while waiting and (ready := wait(list(waiting), max(deadline - monotonic(), 0))):
            for connection in ready:
                rank = waiting.pop(connection)  # type: ignore[call-overload]
                try:
                    answers[rank] = connection.recv()  # type: ignore[union-attr]
                except EOFError:
                    answers[rank] = "the process has died"
                if answers[rank] is not None:
                    deadline = min(deadline, monotonic() + FOLLOW_SECONDS)
        return answers

    def stop(self) -> None:
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()
            process.join()
        if self._processes:
            self._folder.cleanup()
        self._processes, self._connections = [], []
