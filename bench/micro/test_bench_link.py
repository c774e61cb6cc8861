"""What a Link costs a frame and a task, without codec and socket: a request with its answer, and a delivery of 1,000 tasks with its report."""

from __future__ import annotations

from typing import Any

from taskq.core import messages as m
from taskq.protocol.frames import Frame
from taskq.protocol.link import Answered, Link, Pushed

TASKS, REQUESTS = 1_000, 200


def ready(role: str) -> Link:
    link = Link(m.Hello(1, role))
    link.opened(0)
    link.take()
    link.receive(Frame(0, 1, m.Welcome(b"s" * 16, b"k" * 32, 0, 1, 5_000, 15_000)), 0)
    return link


def test_200_requests_and_their_answers(benchmark: Any) -> None:
    link, request, answer = ready("producer"), m.Get(bytes(16)), m.Ok()

    def ask() -> None:
        for _ in range(REQUESTS):
            link.request(request, None, 10_000)
            (frame,) = link.take()
            assert type(link.receive(Frame(0, frame.seq, answer), 0)[0]) is Answered

    benchmark(ask)


def test_a_delivery_of_1000_tasks_and_its_report(benchmark: Any) -> None:
    link = ready("worker")
    payloads, ids, outcomes = [b"p"] * TASKS, bytes(16 * TASKS), bytes(TASKS)

    def work() -> None:
        first = link.received + 1
        tokens = b"".join(number.to_bytes(8, "big") for number in range(first, first + TASKS))
        assert type(link.receive(Frame(0, 0, m.Deliver(payloads, "q", first, ids, tokens, ["t"], [0], [1], [0])), 0)[0]) is Pushed
        link.request(m.Ack(payloads, ids, tokens), None)
        (frame,) = link.take()
        link.receive(Frame(0, frame.seq, m.Reported(outcomes)), 0)
        assert not link.held

    benchmark(work)
