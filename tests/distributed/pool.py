"""Processes that form one torch.distributed group and run the same function, under a time-out.

Starting them takes seconds, so a pool is kept for all tests of one size. A function that fails or
hangs on any rank ends the pool: the other ranks may wait for that one for ever.
"""

from __future__ import annotations

import datetime
import io
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

HOST = "127.0.0.1"


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

    def __call__(self, function: Callable[..., Any], *args: Any, limit: float = 240.0) -> list[Any]:
        """``function(*args)`` on every rank; the results by rank."""
        for pipe in self._pipes:
            pipe.send((function, args))
        end = time.monotonic() + limit
        results = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(max(0.0, end - time.monotonic())):
                self.close()
                raise TimeoutError(f"{function.__name__} hung on rank {rank} for {limit:g} s")
            try:
                ok, data = pipe.recv()
            except EOFError:
                self.close()
                raise RuntimeError(f"{function.__name__}: rank {rank} died") from None
            if not ok:
                self.close()
                raise RuntimeError(f"{function.__name__} failed on rank {rank}:\n{data}")
            results.append(torch.load(io.BytesIO(data), weights_only=False))
        return results

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


def _serve(rank: int, world: int, port: int, pipe: Connection) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = dist.TCPStore(HOST, port, is_master=False)
    limit = datetime.timedelta(seconds=200)
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
