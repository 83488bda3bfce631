"""Processes that find each other, and not those of an earlier start."""

import secrets
import time
from datetime import timedelta

from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous


def meet(timeout: timedelta) -> Store:
    """The store of this start's processes, as torchrun's environment names it.

    torchrun keeps its store when it starts all processes again, with the addresses of those that are dead: who reads
    one of them before it is written anew waits for nobody (pytorch/pytorch#135712).
    """
    store, rank, world = next(rendezvous("env://", timeout=timeout))
    return PrefixStore(agree(store, rank, world, timeout), store)


def agree(store: Store, rank: int, world: int, timeout: timedelta) -> str:
    """A name that the living processes have in common, and none that came before.

    The first makes it up and answers whoever calls it by it. An old name gets no answer to a call made now.

    Raises:
        RuntimeError: not all are there in time.
    """
    end, mine = time.monotonic() + timeout.total_seconds(), secrets.token_hex(8)
    if rank == 0:
        store.set("start", mine)
        for other in range(1, world):
            store.set(f"{mine}/answer/{other}", _wait(store, f"{mine}/call/{other}", end))
        return mine
    while True:
        name = _wait(store, "start", end).decode()
        store.set(f"{name}/call/{rank}", mine)
        answer = f"{name}/answer/{rank}"
        for _ in range(20):
            if store.check([answer]) and store.get(answer).decode() == mine:
                return name
            time.sleep(0.05)
        if time.monotonic() > end:
            raise RuntimeError("the first process does not answer")


def _wait(store: Store, key: str, end: float) -> bytes:
    while not store.check([key]):
        if time.monotonic() > end:
            raise RuntimeError("not all of them came in time")
        time.sleep(0.02)
    return store.get(key)
