"""Mistakes that people make in Python, each with what taskq says to it: the field, and the way out."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import functools
import importlib
import pathlib
import pickle
import sys
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

import taskq
from taskq import App, AsyncClient, testing
from taskq.errors import KeyConflict


@pytest.fixture
def app() -> App:
    return App("127.0.0.1:1")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], ModuleType]]:
    """Write a module and import it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def write(name: str, text: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        made.append(name)
        return importlib.import_module(name)

    yield write
    for name in made:
        sys.modules.pop(name, None)


class Mailer:
    def send(self, to: str) -> None: ...

    @classmethod
    def make(cls) -> None: ...

    @staticmethod
    def plain(to: str) -> str:
        return to

    def __call__(self, to: str) -> None: ...


def items(n: int) -> Iterator[int]:
    yield n


async def async_items(n: int) -> AsyncIterator[int]:
    yield n


def send_email(to: str, copies: int = 1) -> str:
    return f"{to} {copies}"


class TestWhatIsDecorated:
    @pytest.mark.parametrize(
        ("mistake", "words"),
        [
            ("emails", ["'emails'", "name=", "queue="]),
            (None, ["None", "def"]),
            (Mailer, ["Mailer is a class", "def"]),
            (Mailer(), ["is not a function", "def"]),
            (Mailer().send, ["Mailer.send is a method", "a function of the module"]),
            (Mailer.send, ["Mailer.send is a method"]),
            (Mailer.make, ["is a method"]),
            (Mailer.__dict__["plain"], ["a function of the module"]),
            (functools.partial(send_email, copies=2), ["functools.partial", "def"]),
            (lambda to: to, ["lambda", "def"]),
            (items, ["items is a generator", "return a list"]),
            (async_items, ["async_items is an async generator", "return a list"]),
        ],
        ids=lambda value: "" if isinstance(value, list) else type(value).__name__,
    )
    @pytest.mark.parametrize("settings", [{}, {"name": "t"}], ids=["bare", "named"])
    def test_only_a_function_can_be_a_task(self, app: App, mistake: Any, words: list[str], settings: dict[str, Any]) -> None:
        with pytest.raises(TypeError) as refused:
            app.task(**settings)(mistake) if settings else app.task(mistake)
        for word in ["@app.task", *words]:
            assert word in str(refused.value)
        assert app.tasks == {}

    def test_a_method_in_its_class_is_refused_when_the_class_is_made(self, app: App) -> None:
        with pytest.raises(TypeError, match=r"Shop\.sell is a method"):

            class Shop:
                @app.task
                def sell(self, what: str) -> None: ...

    def test_a_task_is_not_decorated_twice(self, app: App) -> None:
        with pytest.raises(TypeError, match="is a task already"):
            app.task(app.task(send_email))

    def test_a_static_method_through_its_class_is_a_function(self, app: App) -> None:
        assert app.task(Mailer.plain)("a") == "a"

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"retries": 3}, "unknown option 'retries'; write max_attempts; known are name, queue"),
            ({"time_limit": 3}, "write timeout"),
            ({"autoretry_for": (ValueError,)}, "write retry_on"),
            ({"prioritty": 3}, "did you mean priority"),
            ({"delay": 3}, r"task\.options\(delay=…\)"),
            ({"retry_on": [ValueError, OSError]}, r"retry_on: write a tuple: retry_on=\(ValueError, OSError,\)"),
            ({"no_retry_on": [ValueError]}, r"no_retry_on: write a tuple: no_retry_on=\(ValueError,\)"),
            ({"retry_on": ValueError("x")}, "retry_on.*is not an exception class; write for example"),
            ({"backoff_base": "2h", "backoff_max": "1h"}, "backoff_base.*longer than backoff_max"),
            ({"timeout": "400d"}, "timeout.*366 days"),
            ({"backoff_max": "400d"}, "backoff_max.*366 days"),
            ({"name": ""}, "name: '' is not a valid name"),
            ({"max_attempts": 0}, "max_attempts: 0 is not a whole number from 1"),
            ({"pool": "threads"}, "pool: 'threads' is not one of async, thread, process"),
        ],
    )
    def test_a_wrong_setting_of_the_decorator_is_named_with_the_right_one(self, app: App, settings: dict[str, Any], words: str) -> None:
        with pytest.raises((TypeError, ValueError), match=words):
            app.task(**settings)(send_email)

    def test_a_base_beyond_the_default_longest_pause_is_taken(self, app: App) -> None:
        app.task(backoff_base="2h")(send_email)
        retry = app.tasks["send_email"].retry
        assert retry is not None
        assert (retry[0], retry[2]) == (7_200_000, 7_200_000)

    def test_two_functions_of_one_name_are_both_named(self, app: App) -> None:
        app.task(send_email)
        with pytest.raises(ValueError, match=r"defined twice, by \S+send_email and \S+plain; give one of them another name="):
            app.task(name="send_email")(Mailer.plain)


class TestTheSameFunctionAgain:
    def test_a_cell_of_a_notebook_that_is_run_again_replaces_its_task(self) -> None:
        cell = "@app.task\ndef j(n):\n    return {result}\n"
        space: dict[str, Any] = {"__name__": "__main__", "app": App()}
        exec(compile(cell.format(result="n"), "<ipython-input-1>", "exec"), space)
        exec(compile(cell.format(result="n + 1"), "<ipython-input-2>", "exec"), space)
        assert space["app"].tasks["j"].function(1) == 2

    def test_a_module_that_is_reloaded_replaces_its_tasks(self, shop: Callable[[str, str], ModuleType]) -> None:
        app = shop("reloaded_house", "from taskq import App\napp = App()\n").app
        jobs = shop("reloaded_jobs", "from reloaded_house import app\n@app.task\ndef j(): return 1\n")
        before = app.tasks["j"]
        importlib.reload(jobs)
        assert app.tasks["j"] is not before
        assert app.tasks["j"].function is jobs.j.definition.function

    def test_a_module_that_is_main_and_imported_too_is_one(self, shop: Callable[[str, str], ModuleType]) -> None:
        app = shop("twin_house", "from taskq import App\napp = App()\n").app
        text = "from twin_house import app\n@app.task\ndef j(): return __name__\n"
        jobs = shop("twin_jobs", text)
        exec(compile(text, str(jobs.__file__), "exec"), {"__name__": "__main__"})
        assert app.tasks["j"].function() == "__main__"

    def test_a_function_of_another_file_is_no_twin(self, app: App) -> None:
        app.task(send_email)
        with pytest.raises(ValueError, match="__main__"):
            exec(compile("@app.task\ndef send_email(): ...\n", "elsewhere.py", "exec"), {"__name__": "__main__", "app": app})


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"retry": 3}, "retry: 3 is not .base, factor, longest.*max_attempts"),
            ({"retry": (1, 2)}, "retry: .1, 2. is not .base, factor, longest"),
            ({"retry": "2s"}, "retry: '2s' is not"),
            ({"retries": 3}, "write max_attempts"),
            ({"max_retries": 3}, "write max_attempts"),
            ({"countdown": 3}, "write delay"),
            ({"backoff_base": 3}, "write retry"),
            ({"delay": "400d"}, "delay: '400d' is more than 366 days"),
            ({"delay": "5 minutes"}, "delay: '5 minutes' is not a duration; write for example"),
            ({"delay": datetime.datetime.now()}, "delay: expected seconds"),
            ({"timeout": -5}, "timeout: -5"),
            ({"priority": "hi"}, "priority: 'hi' is not 0"),
            ({"id": "17"}, "id: '17' is not a task id"),
        ],
    )
    def test_a_wrong_option_is_named_with_the_right_one(self, app: App, options: Any, words: str) -> None:
        with pytest.raises((TypeError, ValueError), match=words) as refused:
            app.task(send_email).options(**options)
        assert "_ms" not in str(refused.value)

    async def test_arguments_beside_the_payload_are_told_to_go_into_it(self) -> None:
        async with AsyncClient("127.0.0.1:1") as client:
            call: Any = client.enqueue
            with pytest.raises(TypeError, match=r"unknown option 'to'.*a dict: enqueue\('send_email', \{'to': …\}\)"):
                await call("send_email", to="x")

    def test_arguments_beside_the_payload_are_told_to_go_into_it_without_a_loop(self) -> None:
        with taskq.Client("127.0.0.1:1") as client, pytest.raises(TypeError, match=r"unknown option 'to'.*a dict"):
            call: Any = client.enqueue
            call("send_email", to="x")

    async def test_a_key_with_other_arguments_names_the_key_and_who_has_it(self, app: App) -> None:
        async with testing.broker() as node, AsyncClient(node.tcp) as client:
            first = await client.enqueue("send_email", {"to": "a"}, key="order-17")
            with pytest.raises(KeyConflict, match=f"'order-17'.*{first.id}.*another key"):
                await client.enqueue("send_email", {"to": "b"}, key="order-17")


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int


@attrs.frozen
class Place:
    x: int


class Model:
    """As pydantic's models look."""

    def model_dump(self, mode: str = "python") -> dict[str, Any]:
        return {}


VALUES = [
    (datetime.datetime(2026, 1, 1), "send value.isoformat()"),
    (datetime.date(2026, 1, 1), "send value.isoformat()"),
    (datetime.timedelta(1), "send value.total_seconds()"),
    (uuid.UUID(int=1), "send str(value)"),
    (decimal.Decimal("1.5"), "send str(value)"),
    (pathlib.Path("x"), "send str(value)"),
    (Colour.RED, "send value.value"),
    (Point(1), "send dataclasses.asdict(value)"),
    (Place(1), "send attrs.asdict(value)"),
    (Model(), 'send value.model_dump(mode="json")'),
    ({1, 2}, "send list(value)"),
    (range(3), "send list(value)"),
    (deque([1]), "send list(value)"),
    (items(1), "send list(value)"),
    (1j, "send [value.real, value.imag]"),
    (object(), "send plain data"),
    (sys.stderr, "send its path"),
    (send_email, "send its name"),
    (Mailer, "send its name"),
    (2**64, "send str(value)"),
    (ValueError("x"), "raise it, or send str(value)"),
]


class TestValues:
    @pytest.mark.parametrize(("value", "way_out"), VALUES, ids=[type(value).__name__ for value, _ in VALUES])
    async def test_a_value_that_cannot_be_sent_says_where_it_is_and_what_to_send(self, app: App, value: Any, way_out: str) -> None:
        task: Any = app.task(send_email)
        with pytest.raises(TypeError) as refused:
            await task.enqueue(to={"deep": [value]})
        text = str(refused.value)
        assert "argument 'to' of send_email" in text
        assert "['deep'][0]" in text
        assert way_out in text

    @pytest.mark.parametrize(("value", "way_out"), VALUES, ids=[type(value).__name__ for value, _ in VALUES])
    def test_as_a_result_too(self, app: App, value: Any, way_out: str) -> None:
        app.task(send_email)
        with pytest.raises(TypeError) as refused:
            app.tasks["send_email"].result(value)
        assert "the result of send_email" in str(refused.value)
        assert way_out in str(refused.value)

    @pytest.mark.parametrize("calls", [["x"], [5], [None], {"to": "x"}, [("to", "x")]], ids=str)
    async def test_enqueue_many_takes_dicts(self, app: App, calls: Any) -> None:
        with pytest.raises(TypeError, match=r"item 0: .*is not a dict of arguments by name, for example"):
            await app.task(send_email).enqueue_many(calls)

    def test_wrong_arguments_are_shown_beside_the_signature(self, app: App) -> None:
        task: Any = app.task(send_email)
        with pytest.raises(TypeError, match=r"send_email\(to: .*missing a required argument: 'to'"):
            task.enqueue_sync(too="x")


class TestPickling:
    def test_a_task_is_pickled_by_name(self, shop: Callable[[str, str], ModuleType]) -> None:
        jobs = shop("pickled_jobs", "from taskq import App\napp = App()\n@app.task\ndef j(): return 1\n")
        assert pickle.loads(pickle.dumps(jobs.j)) is jobs.j
        with pytest.raises(TypeError, match="with options cannot be pickled; pickle the task"):
            pickle.dumps(jobs.j.options(delay=1))

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (App, "import it from its module"),
            (taskq.Client, "make one in the other process"),
            (AsyncClient, "make one in the other process"),
            (lambda: taskq.TaskHandle(AsyncClient(), bytes(16)), r"hand on handle\.id"),
        ],
    )
    def test_what_has_a_connection_says_what_to_hand_on(self, make: Callable[[], Any], words: str) -> None:
        with pytest.raises(TypeError, match=words):
            pickle.dumps(make())


class TestWhatAFunctionReturnsOrTakes:
    @pytest.fixture(autouse=True)
    def at_once(self, app: App) -> Iterator[None]:
        with testing.eager(app):
            yield

    def test_a_wrong_type_of_an_argument_is_named_when_the_function_fails_of_it(self, app: App) -> None:
        @app.task(max_attempts=1)
        def add(a: int, b: int = 1) -> int:
            return a + b

        task: Any = add
        with pytest.raises(taskq.TaskFailed, match=r"TypeError: .*; argument a is a str, and add says int: enqueue it as int"):
            task.enqueue_sync(a="1").result_sync()

    def test_a_failure_with_the_right_types_has_no_such_hint(self, app: App) -> None:
        @app.task(max_attempts=1)
        def pick(items: list[int], at: int | None = None, rate: float = 1, *rest: str) -> int:
            raise ValueError("nothing")

        with pytest.raises(taskq.TaskFailed) as failed:
            pick.enqueue_sync([1], None, 2).result_sync()
        assert str(failed.value).endswith("ValueError: nothing")

    @pytest.mark.filterwarnings("error")
    def test_a_wrapper_that_forgets_to_await_is_told_to(self, app: App) -> None:
        async def fetch() -> int:
            return 1

        @app.task
        @functools.wraps(fetch)
        def wrapper() -> Any:
            return fetch()

        with pytest.raises(taskq.TaskFailed, match="a value of type coroutine; await it; a wrapper of an async function must be async def itself"):
            wrapper.enqueue_sync().result_sync()

    def test_a_generator_that_is_returned_is_told_to_be_a_list(self, app: App) -> None:
        @app.task
        def numbers() -> Any:
            return (n for n in range(3))

        with pytest.raises(taskq.TaskFailed, match=r"a value of type generator; send list\(value\)"):
            numbers.enqueue_sync().result_sync()

    def test_a_retry_that_is_returned_is_told_to_be_raised(self, app: App) -> None:
        @app.task
        def again() -> Any:
            return taskq.Retry(after=1)

        with pytest.raises(taskq.TaskFailed, match="raise it"):
            again.enqueue_sync().result_sync()
