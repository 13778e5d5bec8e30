"""What is raised passes from one process to another, and through copy."""

from __future__ import annotations

import concurrent.futures
import copy
import inspect
import multiprocessing
import pickle
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

import pytest

import gtstore
from gtstore.errors import GTStoreError
from gtstore.results import PutResult, Version
from gtstore.wire.messages import Owner, Row, StaleDetail

GIVEN: dict[str, Any] = {
    "acks": 1,
    "alive": 0,
    "closes": True,
    "code": 3,
    "detail": StaleDetail(Row(1, 2, 3, (Owner(1, 1, 1, 1),))),
    "error_code": 7,
    "errors": {"b": gtstore.Unavailable("gone", required=2, alive=0)},
    "is_absent": False,
    "key": b"key\x1b1",
    "message": "what\nhappened",
    "name": "BUSY",
    "partition": 4,
    "peer": "node 1 (127.0.0.1:9002)",
    "problems": ["no such file", "another checksum"],
    "required": 2,
    "results": {"a": PutResult((1, 2), Version(3, 4))},
    "version": Version(5, 6),
    "what": "is older than another one's",
}
"""What constructors take, by the parameters' names."""


def all_kinds() -> list[type[GTStoreError]]:
    for module in pkgutil.walk_packages(gtstore.__path__, "gtstore."):
        if not module.name.endswith("__main__"):
            import_module(module.name)

    def below(kind: type[GTStoreError]) -> Iterator[type[GTStoreError]]:
        yield kind
        for derived in kind.__subclasses__():
            yield from below(derived)

    found = dict.fromkeys(below(GTStoreError))
    return [kind for kind in found if kind.__module__.startswith("gtstore.")]


KINDS = all_kinds()
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
each_way = pytest.mark.parametrize(
    "pass_on",
    [
        copy.copy,
        copy.deepcopy,
        *(
            lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol))
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        ),
    ],
)
PassOn = Callable[[GTStoreError], GTStoreError]


def sample(kind: type[GTStoreError]) -> GTStoreError:
    _, *parameters = inspect.signature(kind.__init__).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return kind(GIVEN["message"])
    error: GTStoreError = kind(
        **{parameter.name: GIVEN[parameter.name] for parameter in parameters}
    )
    return error


def facts(value: Any) -> Any:
    """All that can be compared of an error: two of them never are equal."""
    if isinstance(value, Exception):
        return type(value), str(value), repr(value), facts(value.args), facts(vars(value))
    if isinstance(value, Mapping):
        return {key: facts(each) for key, each in value.items()}
    return [facts(each) for each in value] if type(value) in (tuple, list) else value


def test_all_kinds_are_found() -> None:
    """The walk has at least those that everybody can name."""
    public = {getattr(gtstore, name) for name in gtstore.__all__}
    errors = {each for each in public if isinstance(each, type) and issubclass(each, Exception)}
    assert len(errors) > 12
    assert errors <= {*KINDS}


@each_way
@each_kind
def test_it_comes_out_as_it_went_in(kind: type[GTStoreError], pass_on: PassOn) -> None:
    """Pools of processes hand errors on with pickle, and one that cannot be read hangs them."""
    error = sample(kind)
    error.add_note("seen by a worker")
    again = pass_on(error)
    assert facts(again) == facts(error)
    assert facts(pass_on(again)) == facts(error)


@each_kind
def test_class_and_args_make_it_again(kind: type[GTStoreError]) -> None:
    """Task queues that speak JSON have no more than these."""
    error = sample(kind)
    assert facts(kind(*error.args)) == facts(error)
    given = inspect.signature(kind.__init__).bind(error, *error.args).arguments
    assert [*given.values()][1:] in ([*error.args], [error.args])


class OfOthers(gtstore.OperationFailed):
    """A constructor that has nothing to do with ours."""

    def __init__(self, *, order: int) -> None:
        super().__init__(f"order {order} was not stored")
        self.order = order


class TooLate(gtstore.DeadlineExceeded, TimeoutError):
    """Also an OSError, which looks at its arguments itself."""

    def __init__(self, order: int) -> None:
        super().__init__("the shop", f"order {order} was late")
        self.order = order


class Refused(gtstore.RemoteError, OSError):
    pass


DERIVED = [
    OfOthers(order=1),
    TooLate(2),
    Refused("node 1", 3, "BUSY", "all places are taken"),
]


@each_way
@pytest.mark.parametrize("error", DERIVED, ids=lambda error: type(error).__name__)
def test_one_that_others_derive(error: GTStoreError, pass_on: PassOn) -> None:
    assert facts(pass_on(error)) == facts(error)


def fail(number: int) -> None:
    """In a worker process."""
    raise (sample(KINDS[number]) if number >= 0 else DERIVED[number])


NUMBERS = range(-len(DERIVED), len(KINDS))
SPAWN = multiprocessing.get_context("spawn")


def check_a_workers_error(number: int, error: Exception | None) -> None:
    expected = sample(KINDS[number]) if number >= 0 else DERIVED[number]
    assert error is not None
    assert type(error.__cause__).__name__ in ("RemoteTraceback", "_RemoteTraceback")
    assert facts(error) == facts(expected)


@pytest.mark.timeout(60)
def test_a_pool_hands_it_on() -> None:
    """multiprocessing.Pool would wait for ever for the answer of which it cannot read the error."""
    with SPAWN.Pool(1) as pool:
        answers = [pool.apply_async(fail, (number,)) for number in NUMBERS]
        for number, answer in zip(NUMBERS, answers, strict=True):
            with pytest.raises(GTStoreError) as caught:
                answer.get(30)
            check_a_workers_error(number, caught.value)


@pytest.mark.timeout(60)
def test_an_executor_hands_it_on() -> None:
    """ProcessPoolExecutor would be of no use from then on."""
    with concurrent.futures.ProcessPoolExecutor(1, SPAWN) as pool:
        answers = [pool.submit(fail, number) for number in NUMBERS]
        for number, answer in zip(NUMBERS, answers, strict=True):
            error = answer.exception(30)
            assert isinstance(error, GTStoreError)
            check_a_workers_error(number, error)
        assert pool.submit(pow, 2, 3).result(30) == 8
