"""Two blocks in two processes that talk over loopback, against both in one process: time a round.

A round is a pass of local steps, after which weights are exchanged, and a pass of outer steps, of
which each process takes half of the samples. What is learned is the same as in one process, but for
the order of outer steps. Backpropagation through both blocks is timed beside it.
"""

from __future__ import annotations

import socket
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.data.sets import load
from sal_optim.companions import ConsistencyEdges

BATCH, PROCESSES = 64, 2


def blocks_of(count: int, width: int, features: int, classes: int, seed: int) -> list[nn.Module]:
    """A fully connected network of `count` layers, one a block; weights depend on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths = [features, *[width] * (count - 1), classes]
        return [
            nn.Sequential(
                nn.Linear(widths[i], widths[i + 1]), *([nn.ReLU()] if i < count - 1 else [])
            )
            for i in range(count)
        ]


def alone(width: int, rounds: int, seed: int) -> dict[str, float]:
    """Both blocks in this process; seconds a round, and test accuracy."""
    return _run(0, 1, width, rounds, seed)


def backpropagation(width: int, rounds: int, seed: int) -> dict[str, float]:
    """Passes of Adam through both blocks; seconds a pass, and test accuracy."""
    torch.set_num_threads(1)
    data, draw = load("digits"), torch.Generator().manual_seed(seed)
    model = nn.Sequential(*blocks_of(2, width, data.features, data.classes, seed))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for rows in torch.split(torch.randperm(len(data.train_y), generator=draw), BATCH):
            optimizer.zero_grad()
            loss = cross_entropy(model(data.train_x[rows]), data.train_y[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        times.append(time.perf_counter() - start)
    right = model(data.test_x).argmax(1) == data.test_y
    return {"seconds": statistics.median(times), "accuracy": float(right.float().mean())}


def in_two_processes(width: int, rounds: int, seed: int) -> dict[str, float]:
    """The same as `alone`, a block in each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    workers = [
        context.Process(target=_worker, args=(rank, port, width, rounds, seed, queue))
        for rank in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise RuntimeError(f"a process ended with {worker.exitcode}")
    found: dict[str, float] = queue.get()
    return found


def _worker(rank: int, port: int, width: int, rounds: int, seed: int, queue: Any) -> None:
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=PROCESSES
    )
    found = _run(rank, PROCESSES, width, rounds, seed)
    if rank == 0:
        queue.put(found)
    dist.barrier()
    dist.destroy_process_group()


def _run(rank: int, world: int, width: int, rounds: int, seed: int) -> dict[str, float]:
    torch.set_num_threads(1)
    data, draw = load("digits"), torch.Generator().manual_seed(seed)
    edges = ConsistencyEdges(
        blocks_of(2, width, data.features, data.classes, seed),
        data.train_x,
        data.train_y,
        penalty=0.1,
        edge_lr=1.0,
    )
    halves = torch.arange(len(data.train_y)).chunk(world)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for rows in torch.split(torch.randperm(len(data.train_y), generator=draw), BATCH):
            edges.local(rows, block=rank if world > 1 else None)
        if world > 1:
            for place, block in enumerate(edges.blocks):
                for param in block.parameters():
                    dist.broadcast(param.data, place)
        for rows in torch.split(halves[rank], BATCH):
            edges.outer(rows)
        if world > 1:
            for whole in (edges.values[0], edges.multiplier(0)):
                _exchange(whole, halves)
        times.append(time.perf_counter() - start)
    right = edges.model()(data.test_x).argmax(1) == data.test_y
    return {
        "seconds": statistics.median(times),
        "accuracy": float(right.float().mean()),
        "violation": edges.violations()[0],
    }


def _exchange(whole: Tensor, halves: tuple[Tensor, ...]) -> None:
    """Each process has its own half right; afterwards all have all."""
    for place, rows in enumerate(halves):
        part = whole[rows]
        dist.broadcast(part, place)
        whole[rows] = part
