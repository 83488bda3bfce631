"""How the processes of one start find each other, and not those of an earlier start."""

import secrets
import time
from datetime import timedelta

from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous


def meet(timeout: timedelta) -> Store:
    """Returns the store of the processes of this start, at the address in torchrun's environment variables.

    torchrun keeps its store when it restarts all processes, with the addresses of the dead ones in it. A process that
    reads such an address before it is overwritten would wait for a process that no longer exists
    (pytorch/pytorch#135712).
    """
    store, rank, world = next(rendezvous("env://", timeout=timeout))
    return PrefixStore(agree(store, rank, world, timeout), store)


def agree(store: Store, rank: int, world: int, timeout: timedelta) -> str:
    """Returns a name that only the living processes share.

    Rank 0 invents it, and answers every process that calls it by this name. A call to an old name gets no answer.

    Raises:
        RuntimeError: not all processes arrive in time.
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
            raise RuntimeError("rank 0 does not answer")


def _wait(store: Store, key: str, end: float) -> bytes:
    while not store.check([key]):
        if time.monotonic() > end:
            raise RuntimeError("not all processes arrived before the timeout")
        time.sleep(0.02)
    return store.get(key)
