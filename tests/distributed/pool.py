"""Processes that form one torch.distributed group and run the same function, under a time-out.

Starting them takes seconds, so a pool is kept for all tests of one size. A function that fails or
hangs on any rank ends the pool: the other ranks may wait for that one for ever. Processes that hang
wait and use no processor time; on a busy machine others merely are slow. So a group hangs that has
used next to none for ``IDLE`` seconds, and so does one, whatever it does, after ``LIMIT`` seconds.
"""

from __future__ import annotations

import datetime
import io
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

HOST = "127.0.0.1"
IDLE, LIMIT = 60.0, 500.0
# Of a processor: what one at work gets however busy the machine is, and one that waits never takes.
SHARE = 1 / 60


class Pool:
    """``world`` processes of one group."""

    def __init__(self, world: int) -> None:
        self.world = world
        context = multiprocessing.get_context("spawn")
        # Port 0: the system picks a free one, so that test runs side by side don't meet.
        self._store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, world, self._store.port, theirs), daemon=True
            )
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    @property
    def alive(self) -> bool:
        return all(process.is_alive() for process in self._processes)

    def __call__(
        self, function: Callable[..., Any], *args: Any, idle: float = IDLE, limit: float = LIMIT
    ) -> list[Any]:
        """``function(*args)`` on every rank; the results by rank."""
        try:
            for pipe in self._pipes:
                pipe.send((function, args))
            return self._results(function.__name__, idle, limit)
        except BaseException:
            self.close()
            raise

    def _results(self, name: str, idle: float, limit: float) -> list[Any]:
        results: dict[int, Any] = {}
        used = self._seconds_used()
        last = time.monotonic()
        waited = total = 0.0
        while len(results) < self.world:
            pending = {self._pipes[r]: r for r in range(self.world) if r not in results}
            ready = wait(list(pending), timeout=min(idle, 1.0))
            for pipe in ready:
                assert isinstance(pipe, Connection)
                results[pending[pipe]] = _result(name, pending[pipe], pipe)
            # A machine that was suspended, or processes that were, have not waited.
            now = time.monotonic()
            passed, last = min(now - last, 2.0), now
            total, waited = total + passed, waited + passed
            since = self._seconds_used() - used
            if ready or since > SHARE * idle:
                waited, used = 0.0, used + since
            left = sorted(set(range(self.world)) - results.keys())
            if left and (waited > idle or total > limit):
                raise TimeoutError(f"{name} hung on ranks {left} for {waited:.0f} s")
        return [results[rank] for rank in range(self.world)]

    def _seconds_used(self) -> float:
        """Processor time of the group; 0 where the system does not tell it."""
        total = 0.0
        for process in self._processes:
            try:
                fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            # User and system time.
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return total

    def close(self) -> None:
        """End them: an idle one ends as its pipe does, and may save what it measured."""
        for pipe in self._pipes:
            pipe.close()
        end = time.monotonic() + 10.0
        for process in self._processes:
            process.join(max(0.1, end - time.monotonic()))
        for process in self._processes:
            process.kill()
            process.join(10)


def _result(name: str, rank: int, pipe: Connection) -> Any:
    try:
        ok, data = pipe.recv()
    except EOFError:
        raise RuntimeError(f"{name}: rank {rank} died") from None
    if not ok:
        raise RuntimeError(f"{name} failed on rank {rank}:\n{data}")
    return torch.load(io.BytesIO(data), weights_only=False)


def _serve(rank: int, world: int, port: int, pipe: Connection) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = dist.TCPStore(HOST, port, is_master=False)
    limit = datetime.timedelta(seconds=2 * LIMIT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=limit)
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            file = io.BytesIO()
            torch.save(function(*args), file)
            pipe.send((True, file.getvalue()))
        except Exception:
            pipe.send((False, traceback.format_exc()))
