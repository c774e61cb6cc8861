"""The App and its task functions, end to end: enqueue, run on a worker, result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from taskq import App, AsyncClient, Discard, ResultTimeout, Retry, TaskFailed, testing
from taskq.core import messages as m
from taskq.errors import ConfigError
from taskq.worker.registry import TaskDefinition


@pytest.fixture
def app() -> App:
    return App("localhost:1", deadline=5)


class TestDefining:
    def test_a_plain_call_stays_a_plain_call(self, app: App) -> None:
        @app.task
        def add(left: int, right: int = 1) -> int:
            "Adds."
            return left + right

        @app.task()
        async def later(text: str) -> str:
            return text.upper()

        assert add(1, 2) == 3 and add(left=5) == 6
        assert asyncio.run(later(text="a")) == "A"
        assert add.__name__ == "add" and add.__doc__ == "Adds." and repr(add) == "TaskFunction(add)"

    def test_options_become_a_definition(self, app: App) -> None:
        @app.task(
            name="mail.send", queue="email", priority="high", max_attempts=5, timeout="1m", backoff_base=1, retry_on=OSError, no_retry_on=KeyError
        )
        async def send(to: str) -> None: ...

        found = app.tasks["mail.send"]
        assert isinstance(found, TaskDefinition) and found is send.definition and send.name == "mail.send"
        assert (found.queue, found.priority, found.max_attempts, found.timeout_ms) == ("email", 2, 5, 60_000)
        assert (found.retry, found.retry_on, found.no_retry_on, found.pool_for()) == ((1_000, 2.0, 3_600_000), (OSError,), (KeyError,), "async")

    def test_two_tasks_of_one_name_are_refused(self, app: App) -> None:
        def one() -> None: ...
        def two() -> None: ...

        app.task(name="t")(one)
        with pytest.raises(ValueError, match="t is defined twice"):
            app.task(name="t")(two)

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"name": "a b"}, "name"),
            ({"queue": ""}, "queue"),
            ({"priority": -1}, "priority"),
            ({"timeout": "soon"}, "timeout"),
            ({"backoff_factor": 0}, "backoff_factor"),
            ({"pool": "fibre"}, "pool"),
            ({"retry_on": "ValueError"}, "retry_on"),
            ({"colour": "red"}, "colour"),
        ],
    )
    def test_a_setting_that_is_not_valid_is_named(self, app: App, settings: dict[str, Any], words: str) -> None:
        with pytest.raises((ValueError, TypeError), match=words):

            @app.task(**settings)
            def task() -> None: ...

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"url": "redis://localhost"}, "write host:port"),
            ({"url": "http://localhost:3000"}, "write host:port"),
            ({"url": "localhost:99999"}, "write host:port"),
            ({"url": ""}, "write host:port"),
            ({"deadline": "x"}, "deadline"),
            ({"deadline": -1}, "deadline"),
        ],
    )
    def test_an_app_refuses_a_wrong_address_or_deadline_when_it_is_made(self, settings: dict[str, Any], words: str) -> None:
        with pytest.raises((ConfigError, ValueError), match=words):
            App(**settings)

    def test_an_app_refuses_to_use_a_wrong_address(self, app: App) -> None:
        with pytest.raises(ConfigError, match="write host:port"):
            app.use("redis://localhost")

    def test_an_async_function_has_no_place_in_a_thread(self, app: App) -> None:
        with pytest.raises(TypeError, match="def"):

            @app.task(pool="thread")
            async def task() -> None: ...


class TestEnqueueing:
    async def test_arguments_are_checked_before_anything_is_sent(self, app: App) -> None:
        @app.task
        def add(left: int, right: int = 1) -> int:
            return left + right

        with pytest.raises(TypeError, match="missing a required argument: 'left'"):
            await add.enqueue()  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="unexpected keyword argument 'up'"):
            await add.enqueue(1, up=2)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="argument 'right' of add cannot be serialised: a value of type object"):
            await add.enqueue(1, right=object())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"item 1: .*missing"):
            await add.enqueue_many([{"left": 1}, {}])
        with pytest.raises(TypeError, match="key and id name one task"):
            await add.options(key="k").enqueue_many([{"left": 1}])

    def test_positional_arguments_travel_by_name(self, app: App) -> None:
        @app.task
        def add(left: int, right: int = 1) -> int:
            return left + right

        @app.task
        def total(*numbers: int) -> int:
            return sum(numbers)

        assert add.definition.arguments(add.definition.payload((1, 2), {}), m.MSGPACK) == ((), {"left": 1, "right": 2})
        assert total.definition.arguments(total.definition.payload((1, 2), {}), m.MSGPACK) == ((1, 2), {})


class Tasks:
    """An app with a bit of everything."""

    def __init__(self) -> None:
        self.app = App(deadline=5)
        self.send = self.app.task(queue="email", max_attempts=5)(self._send)
        self.square = self.app.task(self._square)
        self.fail = self.app.task(max_attempts=1)(self._fail)
        self.discard = self.app.task(self._discard)

    @staticmethod
    async def _send(to: str) -> str:
        await asyncio.sleep(0)
        return f"sent to {to}"

    @staticmethod
    def _square(number: int) -> int:
        return number * number

    @staticmethod
    def _fail() -> None:
        raise ValueError("broken for good")

    @staticmethod
    def _discard() -> None:
        raise Discard("no such user")


class TestEndToEnd:
    @pytest.fixture
    async def tasks(self) -> AsyncIterator[Tasks]:
        tasks = Tasks()
        async with testing.broker(tasks.app) as node, testing.worker(tasks.app, node):
            yield tasks

    async def test_a_result_comes_back(self, tasks: Tasks) -> None:
        handle = await tasks.send.enqueue(to="user@example.com")
        assert await handle.result(timeout=10) == "sent to user@example.com"
        assert await handle.state() == "completed"
        assert [attempt["outcome"] for attempt in (await handle.info()).fields["attempts"]] == ["completed"]

    async def test_many_results_come_back_in_order(self, tasks: Tasks) -> None:
        handles = await tasks.square.enqueue_many([{"number": number} for number in range(100)])
        assert await asyncio.gather(*(handle.result(timeout=10) for handle in handles)) == [number * number for number in range(100)]

    async def test_sync_code_enqueues_and_waits(self, tasks: Tasks) -> None:
        def sync_code() -> tuple[int, list[int]]:
            many = tasks.square.enqueue_many_sync([{"number": 3}, {"number": 4}])
            return tasks.square.enqueue_sync(2).result_sync(timeout=10), [handle.result_sync(timeout=10) for handle in many]

        assert await asyncio.to_thread(sync_code) == (4, [9, 16])

    async def test_a_failure_raises_with_the_last_error(self, tasks: Tasks) -> None:
        with pytest.raises(TaskFailed, match="ValueError: broken for good"):
            await (await tasks.fail.enqueue()).result(timeout=10)
        with pytest.raises(TaskFailed, match="no such user"):
            await (await tasks.discard.enqueue()).result(timeout=10)

    async def test_a_payload_that_does_not_fit_the_function_is_discarded(self, tasks: Tasks) -> None:
        handle = await tasks.app.client().enqueue("_square", {"numer": 1})
        with pytest.raises(TaskFailed, match="does not fit _square"):
            await handle.result(timeout=10)

    async def test_options_count_for_what_is_enqueued_through_them(self, tasks: Tasks) -> None:
        handle = await tasks.square.options(delay="1h", priority="bulk", key="once").enqueue(7)
        info = await handle.info()
        assert (info.state, info.fields["priority"], info.fields["key"]) == ("scheduled", 9, "once")
        assert not (await tasks.square.options(delay="1h", priority="bulk", key="once").enqueue(7)).created
        assert await handle.cancel() == "cancelled"


class TestManualTime:
    async def test_a_delayed_task_runs_when_the_clock_is_moved(self) -> None:
        tasks, clock = Tasks(), testing.ManualClock()
        async with testing.broker(tasks.app, clock=clock) as node, testing.worker(tasks.app, node):
            handle = await tasks.square.options(delay="1h").enqueue(5)
            await testing.advance(node, clock, "59m")
            assert await handle.state() == "scheduled"
            await testing.advance(node, clock, "1m")
            assert await handle.result(timeout=10) == 25

    async def test_a_retry_waits_for_its_time(self) -> None:
        app, clock, runs = App(deadline=5), testing.ManualClock(), 0

        @app.task
        async def flaky() -> int:
            nonlocal runs
            runs += 1
            if runs == 1:
                raise Retry(after="10m")
            return runs

        async with testing.broker(app, clock=clock) as node, testing.worker(app, node):
            handle = await flaky.enqueue()
            async with asyncio.timeout(10):
                while await handle.state() != "retrying":
                    await asyncio.sleep(0)
            await testing.advance(node, clock, "10m")
            assert await handle.result(timeout=10) == 2


async def test_hours_of_a_manual_clock_pass_at_once_for_a_worker() -> None:
    app, clock, runs = App(), testing.ManualClock(), []

    @app.task(backoff_base="1h", backoff_factor=1, backoff_max="1h", max_attempts=6)
    async def stubborn() -> None:
        runs.append(1)
        raise ValueError("not yet")

    async with testing.broker(app, clock=clock) as node, testing.worker(app, node), AsyncClient(node.tcp) as client:
        handle = await stubborn.enqueue()
        for attempt in range(1, 6):
            while len((await handle.info()).fields["attempts"]) < attempt or (await handle.state()) != "retrying":
                await asyncio.sleep(0)
            await testing.advance(node, clock, "1h")
        assert (await client.wait(handle, timeout=10)).state == "failed"
    assert len(runs) == 6


async def test_a_result_that_does_not_come_is_a_timeout_under_a_manual_clock_too() -> None:
    async with testing.broker(clock=testing.ManualClock()) as node, AsyncClient(node.tcp) as client:
        handle = await client.enqueue("nobody", {})
        with pytest.raises(ResultTimeout, match="still pending"):
            await handle.result(timeout=0.1)
