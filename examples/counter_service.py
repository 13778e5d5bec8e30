"""A counter behind HTTP: several instances of a service that share their state.

    python examples/counter_service.py [--manager HOST:PORT]

    POST /hits/NAME    counts one, and answers with the new number
    GET /hits/NAME     answers with the number

An instance keeps nothing of its own, so any of them may answer any request, and may be stopped at
any time. What keeps the count right is that ``increment`` is one operation of the store; a ``get``
and a ``put`` of one more would lose a count whenever two requests meet.

An error has to say to the caller what it may do, and the store's errors tell three cases apart:

- OutcomeUnknown: it may have been counted. 503, "may have counted". Only the caller knows whether
  one too many or one too few is worse; asking again might count it twice, so the service itself
  must not try again.
- InvalidInput: it can never work. 400.
- any other GTStoreError: it was not counted. 503, and the caller may ask again.

Run without a manager, it starts a cluster, kills a storage node while requests come in, and shows
that every request that was answered with a number is in the count.
"""

from __future__ import annotations

import argparse
import http.client
import secrets
import sys
import threading
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote_to_bytes

import gtstore
from gtstore.testing import Cluster

PREFIX = "/hits/"
REQUESTS, CALLERS = 2000, 8


class CounterServer(ThreadingHTTPServer):
    """One instance of the service: a thread for each connection, and one client for all of them."""

    def __init__(self, store: gtstore.Client, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), CounterHandler)
        self.store = store

    @property
    def port(self) -> int:
        return self.server_address[1]


class CounterHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def store(self) -> gtstore.Client:
        assert isinstance(self.server, CounterServer)
        return self.server.store

    def do_POST(self) -> None:
        self.answer(is_hit=True)

    def do_GET(self) -> None:
        self.answer(is_hit=False)

    def answer(self, is_hit: bool) -> None:
        if not self.path.startswith(PREFIX):
            return self.reply(404, "no such counter")
        key = b"hits/" + unquote_to_bytes(self.path.removeprefix(PREFIX))
        try:
            if is_hit:
                return self.reply(200, str(self.store.increment(key)))
            return self.reply(200, self.store.get(key, b"0").decode())
        except gtstore.InvalidInput as error:
            return self.reply(400, str(error))
        except gtstore.OutcomeUnknown:
            return self.reply(503, "may have counted")
        except gtstore.GTStoreError as error:
            return self.reply(503, f"not counted: {error}" if is_hit else str(error))

    def reply(self, status: int, text: str) -> None:
        body = f"{text}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name there
        """Say nothing: the demonstration has thousands of requests."""


@contextmanager
def serving(manager: str) -> Generator[int]:
    """An instance that serves meanwhile; yield its port."""
    with gtstore.connect(manager) as store, CounterServer(store) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.port
        finally:
            server.shutdown()
            thread.join()


def request(port: int, method: str, name: str) -> tuple[int, str]:
    """Ask an instance; return the status and the text of its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, PREFIX + name)
        response = connection.getresponse()
        return response.status, response.read().decode().strip()
    finally:
        connection.close()


def demonstrate(manager: str, cluster: Cluster | None) -> bool:
    """Count with two instances, and kill a node in the middle. Return whether all is right."""
    name = f"demo-{secrets.token_hex(4)}"
    with serving(manager) as one, serving(manager) as other:
        print(f"two instances serve on ports {one} and {other}")
        print(f"{CALLERS} callers send POST {PREFIX}{name} {REQUESTS} times, to both in turn")
        with ThreadPoolExecutor(CALLERS) as callers:
            answers = [
                callers.submit(request, (one, other)[i % 2], "POST", name) for i in range(REQUESTS)
            ]
            if cluster:
                answers[REQUESTS // 4].result()
                cluster.kill_node(1)
                print("storage node 1 was killed meanwhile")
            outcomes = Counter(answer.result() for answer in answers)
        counted = sum(count for (status, _), count in outcomes.items() if status == 200)
        unknown = outcomes[503, "may have counted"]
        print(f"counted: {counted}, may have counted: {unknown}")
        numbers = {request(port, "GET", name)[1] for port in (one, other)}
        print(f"both instances say: {', '.join(numbers)}")
    with gtstore.connect(manager) as store:
        store.delete(f"hits/{name}")
    return len(numbers) == 1 and counted <= int(numbers.pop()) <= counted + unknown


def main() -> int:
    parser = argparse.ArgumentParser(description="Show a counter service on a GT Store cluster.")
    parser.add_argument("--manager", metavar="HOST:PORT", help="without it: a cluster of its own")
    manager = parser.parse_args().manager
    with ExitStack() as stack:
        cluster = None if manager else stack.enter_context(Cluster(nodes=3, replicas=2))
        is_right = demonstrate(cluster.address if cluster else manager, cluster)
    print("OK: every answer is in the count" if is_right else "FAILED: the count is wrong")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
