"""Pools of processes, one a size, started when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.distributed.pool import Pool


@pytest.fixture(scope="session")
def pool_of() -> Iterator[Callable[[int], Pool]]:
    pools: dict[int, Pool] = {}

    def get(world: int) -> Pool:
        if world not in pools or not pools[world].alive:
            pools[world] = Pool(world)
        return pools[world]

    yield get
    for pool in pools.values():
        pool.close()


@pytest.fixture(params=[2, 4], ids=lambda n: f"{n}-processes")
def pool(request: pytest.FixtureRequest, pool_of: Callable[[int], Pool]) -> Pool:
    return pool_of(request.param)
