"""AsyncClient as if it were Client: so one suite of tests, and the chaos runs, are for both."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeAlias, TypeVar, cast

import gtstore
from gtstore import AsyncClient, Client

Result = TypeVar("Result")
Connect: TypeAlias = Callable[..., Client]

_READS = ("get", "get_entry", "get_many", "where", "status")


class BlockingClient:
    """An AsyncClient in an event loop of its own, in a thread of its own. Many threads may use it
    at once: then it has as many tasks.

    Args:
        cancels: how often a call is cancelled at a random moment. What it raises then is what its
            caller knows: of a write, OutcomeUnknown.
    """

    def __init__(self, manager: str, timeout: float = 5.0, cancels: float = 0.0) -> None:
        self._loop = asyncio.new_event_loop()
        self._cancels = cancels
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self.store: AsyncClient = gtstore.connect_async(manager, timeout)
            self.run(self._connected())
        except BaseException:
            self.close()
            raise

    async def _connected(self) -> None:
        await self.store

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine in the loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        if self._loop.is_closed():
            return
        if "store" in vars(self):
            self.run(self.store.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)
        if name.startswith("scan"):
            return lambda *arguments: self._steps(method(*arguments))

        def call(*arguments: Any, **options: Any) -> Any:
            if self._loop.is_closed():
                raise gtstore.GTStoreError("this client was closed")
            coroutine = method(*arguments, **options)
            if random.random() >= self._cancels:
                return self.run(coroutine)
            try:
                return self.run(asyncio.wait_for(coroutine, random.random() * 0.005))
            except TimeoutError:
                if name in _READS:
                    raise gtstore.DeadlineExceeded("the call", "cancelled") from None
                raise gtstore.OutcomeUnknown("cancelled", acks=0, required=0) from None

        return call

    def _steps(self, found: Any) -> Generator[Any]:
        try:
            while True:
                try:
                    yield self.run(anext(found))
                except StopAsyncIteration:
                    return
        finally:
            self.run(found.aclose())


def connect_blocking(manager: str, timeout: float = 5.0, cancels: float = 0.0) -> Client:
    return cast(Client, BlockingClient(manager, timeout, cancels))


def set_timeout(store: Client, timeout_s: float) -> None:
    """Change what further calls may take."""
    if isinstance(store, BlockingClient):
        store.store._session.timeout_s = timeout_s
    else:
        store._timeout_s = timeout_s
