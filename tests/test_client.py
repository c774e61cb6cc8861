"""The clients: against a scripted broker (real sockets, real frames) where the broker must misbehave, against the real one for the rest."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from scripted import BROKER_MS, Reply, Scripted, created

from taskq import AsyncClient, BrokerUnavailable, Client, EnqueueError, ResultTimeout, TaskCancelled, TaskHandle, ids, testing
from taskq.batch import FRAME_TASKS_MAX
from taskq.clock import SystemClock
from taskq.connection import Address, backoff_s
from taskq.core import messages as m
from taskq.errors import BadRequest, ConfigError, NotFound, PayloadTooLarge, VersionUnsupported
from taskq.protocol.frames import RESENT, Frame


@asynccontextmanager
async def scripted(*script: Reply, deadline: float = 5.0) -> AsyncIterator[tuple[Scripted, AsyncClient]]:
    broker = Scripted(*script)
    server = await broker.listen()
    async with AsyncClient(broker.url, deadline=deadline, rng=random.Random(1)) as client:
        yield broker, client
    server.close()
    await server.wait_closed()


def refused(*indexes: int) -> Reply:
    def reply(frame: Frame) -> list[Any]:
        (answer,) = created(frame)
        answer.outcomes = bytes(m.REFUSED if index in indexes else m.CREATED for index in range(len(frame.message.payloads)))
        answer.errors = [[index, "KEY_CONFLICT", "other content", "key"] for index in indexes]
        return [answer]

    return reply


class TestFrames:
    async def test_enqueues_of_one_turn_leave_in_one_frame_a_queue(self) -> None:
        async with scripted() as (broker, client):
            await client.enqueue("warm", queue="up")
            names = [("t", "a"), ("t", "b"), ("u", "a"), ("t", "a")]
            handles = await asyncio.gather(*(client.enqueue(kind, {"n": n}, queue=queue) for n, (kind, queue) in enumerate(names)))
            first, second = broker.enqueues[1:]
            assert (first.queue, first.task_types, second.queue, second.task_types) == ("a", ["t", "u", "t"], "b", ["t"])
            assert [handle.raw for handle in handles] == [*ids.split(first.ids, 16)[:1], second.ids, *ids.split(first.ids, 16)[1:]]

    async def test_columns_have_one_entry_when_all_tasks_are_alike(self) -> None:
        async with scripted() as (broker, client):
            await client.enqueue_many("t", [{"n": n} for n in range(3)], priority="high", timeout="1m", retry=("1s", 2, "1h"))
            (frame,) = broker.enqueues
            assert (frame.task_types, frame.encodings, frame.priorities, frame.timeouts_ms) == (["t"], [m.MSGPACK], [2], [60_000])
            assert (frame.delays_ms, frame.keys, frame.retries) == ([0], [None], [[1_000, 2.0, 3_600_000]])

    async def test_options_that_differ_stay_with_their_tasks(self) -> None:
        async with scripted() as (broker, client):
            await client.enqueue("warm", queue="up")
            await asyncio.gather(client.enqueue("t", priority=1), client.enqueue("t", b"raw", priority=9, key="k", delay="5m"))
            frame = broker.enqueues[-1]
            assert (frame.priorities, frame.keys, frame.delays_ms) == ([1, 9], [None, "k"], [0, 300_000])
            assert (frame.encodings, frame.max_attempts) == ([m.MSGPACK, m.BYTES], [10])

    async def test_ids_carry_the_slot_of_the_queue_and_the_brokers_time(self) -> None:
        async with scripted() as (_, client):
            handle = await client.enqueue("t", queue="email")
            assert ids.is_valid(handle.raw) and ids.slot_of_id(handle.raw) == ids.slot_of_queue("email")
            assert 0 <= ids.ms_of_id(handle.raw) - BROKER_MS < 10_000

    async def test_ids_follow_the_brokers_time_whatever_somebody_does_to_the_clock_of_this_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now_ns = time.time_ns
        async with scripted() as (_, client):
            for wrong_s in (0, 90, 3_600, 86_400, -90, -3_600, -86_400):
                monkeypatch.setattr(time, "time_ns", lambda wrong_s=wrong_s: now_ns() + wrong_s * 1_000_000_000)
                handle = await client.enqueue("t")
                assert abs(ids.ms_of_id(handle.raw) - BROKER_MS) < 10_000, wrong_s

    async def test_the_ids_of_a_frame_are_each_new_and_carry_slot_and_time(self) -> None:
        async with scripted() as (broker, client):
            await client.enqueue_many("t", [{}] * FRAME_TASKS_MAX, queue="email")
            made = ids.split(broker.enqueues[0].ids, ids.ID_BYTES)
            assert len(set(made)) == len({each[8:] for each in made}) == FRAME_TASKS_MAX and all(map(ids.is_valid, made))
            assert {ids.slot_of_id(each) for each in made} == {ids.slot_of_queue("email")}
            assert all(BROKER_MS <= ids.ms_of_id(each) < BROKER_MS + 60_000 for each in made)

    async def test_a_task_that_comes_with_an_id_is_flagged_and_the_others_of_its_turn_are_not(self) -> None:
        async with scripted() as (broker, client):
            first = await client.enqueue("t", {"n": 1})
            again, other = await asyncio.gather(client.enqueue("t", {"n": 1}, id=first.id), client.enqueue("t", {"n": 2}))
            assert [(frame.flags, frame.message.ids) for frame in broker.frames[1:]] == [(RESENT, first.raw), (0, other.raw)]
            assert again == first

    async def test_many_tasks_are_cut_into_frames_by_number_and_by_bytes(self) -> None:
        async with scripted() as (broker, client):
            handles = await client.enqueue_many("t", ({"n": n} for n in range(2 * FRAME_TASKS_MAX + 1)))
            assert [len(frame.payloads) for frame in broker.enqueues] == [FRAME_TASKS_MAX, FRAME_TASKS_MAX, 1]
            assert len({handle.id for handle in handles}) == 2 * FRAME_TASKS_MAX + 1
            await client.enqueue_many("t", [bytes(400 << 10)] * 3)
            assert [len(frame.payloads) for frame in broker.enqueues[3:]] == [2, 1]

    async def test_nothing_to_enqueue_sends_nothing(self) -> None:
        async with scripted() as (broker, client):
            assert await client.enqueue_many("t", []) == []
            assert broker.frames == []


class TestTrouble:
    async def test_a_broken_connection_sends_the_same_ids_again_with_the_flag(self) -> None:
        async with scripted(lambda _: [None]) as (broker, client):
            handle = await client.enqueue("t", {"n": 1})
            first, second = broker.frames
            assert (first.flags, second.flags) == (0, RESENT) and first.message.ids == second.message.ids == handle.raw

    async def test_an_overloaded_broker_is_asked_again(self) -> None:
        async with scripted(lambda _: [m.Error("OVERLOADED", "later", retryable=True, retry_after_ms=30)]) as (broker, client):
            await client.enqueue("t")
            assert len(broker.enqueues) == 2

    async def test_a_refused_task_raises_its_own_error(self) -> None:
        async with scripted(refused(0)) as (_, client):
            with pytest.raises(Exception, match="other content") as caught:
                await client.enqueue("t", key="k")
            assert type(caught.value).__name__ == "KeyConflict"

    async def test_the_others_of_a_turn_do_not_notice_a_refusal(self) -> None:
        async with scripted(created, refused(1)) as (_, client):
            await client.enqueue("warm")
            found = await asyncio.gather(*(client.enqueue("t") for _ in range(3)), return_exceptions=True)
            assert [type(each).__name__ for each in found] == ["TaskHandle", "KeyConflict", "TaskHandle"]

    async def test_enqueue_many_tells_which_were_refused_and_keeps_the_others(self) -> None:
        async with scripted(refused(1)) as (_, client):
            with pytest.raises(EnqueueError, match=r"1 of 3 tasks .* item 1") as caught:
                await client.enqueue_many("t", [{}, {}, {}])
            assert [handle is None for handle in caught.value.handles] == [False, True, False]
            assert list(caught.value.errors) == [1]

    async def test_a_broker_that_never_answers_ends_with_the_deadline(self) -> None:
        async with scripted(lambda _: []) as (_, client):
            with pytest.raises(BrokerUnavailable, match="did not answer"):
                await client.enqueue("t", deadline=0.05)

    async def test_what_an_enqueue_by_name_asks_before_takes_of_the_same_deadline(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:  # it accepts, and never says a word
            url = f"127.0.0.1:{server.getsockname()[1]}"
            async with AsyncClient(url) as client, asyncio.timeout(5):
                with pytest.raises(BrokerUnavailable):
                    await client.enqueue("t", deadline=0.2)
                with pytest.raises(TypeError, match="unknown option 'retries'"):
                    await client.enqueue("t", retries=3)  # type: ignore[call-arg]

    async def test_nobody_at_the_address_ends_with_the_deadline_and_says_why(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"127.0.0.1:{free.getsockname()[1]}"
            async with AsyncClient(url, deadline=0.2) as client:
                began = time.monotonic()
                with pytest.raises(BrokerUnavailable, match=f"{url}: Connection refused"):
                    await client.enqueue("t")
                assert time.monotonic() - began < 2

    async def test_a_broker_of_another_version_is_told_at_once(self) -> None:
        class Old(Scripted):
            def answers(self, frame: Frame) -> list[Any]:
                return [m.Error("VERSION_UNSUPPORTED", "this broker speaks version 9")]

        old = Old()
        server = await old.listen()
        async with AsyncClient(old.url) as client:
            with pytest.raises(VersionUnsupported, match="version 9"):
                await client.enqueue("t")
        server.close()

    async def test_a_frame_that_cannot_be_encoded_is_refused_to_its_sender_alone(self) -> None:
        async with scripted() as (_, client):
            await client.enqueue("warm")
            bad = asyncio.ensure_future(client._call(m.Inspect("\ud800")))
            assert (await client.enqueue("t")).created
            with pytest.raises(BadRequest, match="cannot be packed"):
                await bad

    async def test_close_refuses_what_is_not_answered(self) -> None:
        async with scripted(created, lambda _: []) as (broker, client):
            await client.enqueue("warm")
            waiting = asyncio.ensure_future(client.enqueue("t"))
            while len(broker.frames) < 2:
                await asyncio.sleep(0)
            await client.close()
            with pytest.raises(BrokerUnavailable):
                await waiting

    async def test_a_payload_over_the_limit_does_not_leave(self) -> None:
        async with scripted() as (broker, client):
            with pytest.raises(PayloadTooLarge, match="enqueue a reference"):
                await client.enqueue("t", bytes((1 << 20) + 1))
            with pytest.raises(PayloadTooLarge):
                await client.enqueue_many("t", [b"", bytes((1 << 20) + 1)])
            assert broker.frames == []

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"queue": "a b"}, "queue"),
            ({"priority": 10}, "priority"),
            ({"priority": "urgent"}, "critical"),
            ({"max_attempts": 0}, "max_attempts"),
            ({"delay": "soon"}, "delay"),
            ({"timeout": -1}, "timeout"),
            ({"id": "12"}, "32 hex digits"),
            ({"key": "\ud800"}, "key"),
            ({"colour": "red"}, "unknown option 'colour'"),
        ],
    )
    async def test_an_option_that_is_not_valid_is_named(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises((ValueError, TypeError), match=words):
            await AsyncClient("localhost:1").enqueue("t", **options)

    async def test_what_cannot_be_sent_is_named(self) -> None:
        with pytest.raises(TypeError, match=r"argument 'to' of t .* set at \['cc'\]\[1\]"):
            await AsyncClient("localhost:1").enqueue("t", {"to": {"cc": ["a", {"b"}]}})


class SetClock(SystemClock):
    """A broker's clock that somebody sets; its steady time goes on."""

    set_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.set_ms


class TestWithTheBroker:
    @pytest.mark.parametrize("step_s", [-3_600, -86_400, 3_600, 86_400])
    async def test_a_step_of_the_brokers_clock_refuses_no_enqueue(self, step_s: int) -> None:
        clock = SetClock()
        async with testing.broker(clock=clock) as node, AsyncClient(node.tcp) as client:
            before = await client.enqueue("t")
            clock.set_ms = step_s * 1_000
            async with AsyncClient(node.tcp) as late:
                handles = [await client.enqueue("t"), await late.enqueue("t"), *await late.enqueue_many("t", [{}] * 3)]
            assert [handle.created for handle in handles] == [True] * 5
            assert abs(ids.ms_of_id(handles[1].raw) - ids.ms_of_id(before.raw)) < 60_000, "ids live by the steady clock"

    async def test_a_task_can_be_enqueued_looked_at_and_cancelled(self) -> None:
        async with testing.broker() as node, AsyncClient(node.tcp) as client:
            handle = await client.enqueue("send_email", {"to": "a"}, queue="email", max_attempts=3)
            info = await client.get(handle.id)
            assert (info.id, info.task_type, info.queue, info.state) == (handle.id, "send_email", "email", "pending")
            assert info.payload == {"to": "a"} and info.fields["max_attempts"] == 3 and handle.durability == "memory"
            assert any(row["queue"] == "email" for row in await client.queues())
            assert await client.workers() == []
            assert await client.cancel(handle) == "cancelled"
            assert await client.cancel(handle) == "already_final"
            with pytest.raises(TaskCancelled):
                await handle.result(timeout=5)

    async def test_the_same_id_or_key_makes_one_task(self) -> None:
        async with testing.broker() as node, AsyncClient(node.tcp) as client:
            first = await client.enqueue("t", {"n": 1}, key="k")
            again = await client.enqueue("t", {"n": 1}, key="k")
            assert first.created and not again.created and first == again

    async def test_an_unknown_id_is_not_found(self) -> None:
        async with testing.broker() as node, AsyncClient(node.tcp) as client:
            with pytest.raises(NotFound):
                await client.get(ids.make_id(int(time.time() * 1000), 5, random.Random(1)))

    async def test_waiting_for_a_task_that_does_not_end_times_out(self) -> None:
        async with testing.broker() as node, AsyncClient(node.tcp) as client:
            handle = await client.enqueue("nobody_knows")
            with pytest.raises(ResultTimeout, match="still pending"):
                await handle.result(timeout=0.05)

    async def test_many_tasks_at_once(self) -> None:
        async with testing.broker() as node, AsyncClient(node.tcp) as client:
            handles = await client.enqueue_many("t", [{"n": n} for n in range(5_000)])
            singles = await asyncio.gather(*(client.enqueue("t", {"n": n}) for n in range(2_000)))
            assert len({handle.id for handle in [*handles, *singles]}) == 7_000
            assert (await client.get(handles[4_321])).payload == {"n": 4_321}

    async def test_the_sync_client_from_several_threads(self) -> None:
        async with testing.broker() as node:
            with Client(node.tcp) as client:

                def use(number: int) -> TaskHandle[Any]:
                    handle = client.enqueue("t", {"n": number})
                    assert handle.state_sync() == "pending" and handle.info_sync().payload == {"n": number}
                    return handle

                handles = await asyncio.gather(*(asyncio.to_thread(use, number) for number in range(8)))
                assert len({handle.id for handle in handles}) == 8
                assert await handles[0].state() == "pending", "a handle can be used from another loop than its client's"
                await asyncio.to_thread(client.close)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    async def test_the_sync_client_works_after_a_fork(self) -> None:
        async with testing.broker() as node:
            client = Client(node.tcp)
            await asyncio.to_thread(client.enqueue, "before")
            pid = await asyncio.to_thread(_fork_and_enqueue, client)
            _, status = await asyncio.to_thread(os.waitpid, pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            await asyncio.to_thread(client.close)

    async def test_a_sync_call_on_its_own_loop_is_refused_instead_of_hanging(self) -> None:
        async with testing.broker() as node, AsyncClient(node.tcp) as client:
            handle = await client.enqueue("t")
            with pytest.raises(RuntimeError, match="await"):
                handle.state_sync()


def _fork_and_enqueue(client: Client) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if client.enqueue("after", deadline=5).state_sync() == "pending" else 1
        finally:
            os._exit(code)
    return pid


class TestAddress:
    @pytest.mark.parametrize(
        ("url", "host", "port"),
        [
            ("localhost:7000", "localhost", 7000),
            ("taskq://queue.example:7001", "queue.example", 7001),
            ("taskq://queue.example:7001/", "queue.example", 7001),
            ("queue", "queue", 7000),
            ("[::1]:9", "::1", 9),
        ],
    )
    def test_the_forms_of_an_address(self, url: str, host: str, port: int) -> None:
        assert Address.parse(url) == Address(host, port)

    @pytest.mark.parametrize("url", ["", "http://a:1", "a:b", "a:99999", ":7000", "user@a:1", "a:1/path"])
    def test_another_text_is_refused_with_an_example(self, url: str) -> None:
        with pytest.raises(ConfigError, match="localhost:7000"):
            Address.parse(url)

    def test_the_environment_names_the_broker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TASKQ_URL", "taskq://here:1")
        assert AsyncClient().address == Address("here", 1)
        monkeypatch.delenv("TASKQ_URL")
        assert AsyncClient().address == Address("localhost", 7000)

    def test_the_backoff_grows_to_its_cap_and_is_never_nothing(self) -> None:
        rng = random.Random(1)
        delays = [backoff_s(failures, rng) for failures in range(100)]
        assert all(0.01 < delay <= 5 for delay in delays) and max(delays) > 3 and delays[0] <= 0.05


async def test_closing_a_client_ends_a_bulk_of_another_thread_between_two_of_its_frames() -> None:
    def enqueue_and_close(url: str) -> list[BaseException]:
        client, begun, errors = Client(url), threading.Event(), []

        def payloads() -> Iterator[dict[str, int]]:
            yield from ({"a": number} for number in range(200 * FRAME_TASKS_MAX))
            begun.set()

        def work() -> None:
            try:
                client.enqueue_many("work", payloads())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        assert begun.wait(20)
        client.close()
        thread.join(20)
        assert not thread.is_alive()
        return errors

    async with testing.broker() as node:
        [error] = await asyncio.to_thread(enqueue_and_close, node.tcp)
        assert isinstance(error, (BrokerUnavailable, EnqueueError))
