"""Gearman, with clients that pipeline its binary protocol: many packets in one write, their answers in one read."""

from __future__ import annotations

import json
import struct

from bench_client import SETTINGS, Connection, Producer, chunks, mark, payload, working

HEAD = struct.Struct(">4sII")
REQUEST, ANSWER = b"\0REQ", b"\0RES"
CAN_DO, PRE_SLEEP, NOOP, SUBMIT_JOB, JOB_CREATED, GRAB_JOB, NO_JOB, JOB_ASSIGN = 1, 4, 6, 7, 8, 9, 10, 11
WORK_COMPLETE, SUBMIT_JOB_BG = 13, 18
NAME = b"work"


def packet(kind: int, *parts: bytes) -> bytes:
    data = b"\0".join(parts)
    return HEAD.pack(REQUEST, kind, len(data)) + data


class Packets(Connection):
    """A connection that reads packets."""

    at = 0

    def next(self) -> tuple[int, bytes]:
        while len(self.buffer) - self.at < HEAD.size:
            self._fill()
        magic, kind, length = HEAD.unpack_from(self.buffer, self.at)
        if magic != ANSWER:
            raise RuntimeError(f"gearmand sent {magic!r}")
        while len(self.buffer) - self.at < HEAD.size + length:
            self._fill()
        begin = self.at + HEAD.size
        self.at = begin + length
        return kind, bytes(self.buffer[begin : self.at])

    def _fill(self) -> None:
        if self.at:
            del self.buffer[: self.at]
            self.at = 0
        self.fill()

    def expect(self, kind: int) -> bytes:
        found, data = self.next()
        if found != kind:
            raise RuntimeError(f"gearmand sent {found} {data[:100]!r}, not {kind}")
        return data


class Submits(Packets):
    """A producer."""

    def one(self, n: int) -> None:
        self.send(self._submit(SUBMIT_JOB_BG, n))
        self.expect(JOB_CREATED)

    def bulk(self, numbers: range) -> None:
        for chunk in chunks(numbers, SETTINGS["submits"]):
            self.send(b"".join([self._submit(SUBMIT_JOB_BG, n) for n in chunk]))
            for _ in chunk:
                self.expect(JOB_CREATED)

    def answer(self, n: int) -> object:
        self.send(self._submit(SUBMIT_JOB, n))
        self.expect(JOB_CREATED)
        return json.loads(self.expect(WORK_COMPLETE).split(b"\0", 1)[1])

    @staticmethod
    def _submit(kind: int, n: int) -> bytes:
        return packet(kind, NAME, b"", json.dumps(payload(n)).encode())


class Grabs(Packets):
    """The worker: it asks for many jobs at once, and sleeps until it is woken when there is none."""

    def run(self) -> None:
        self.send(packet(CAN_DO, NAME))
        grabs = packet(GRAB_JOB) * SETTINGS["grabs"]
        one = packet(GRAB_JOB)
        out, asked = one, 1
        while True:
            self.send(out)
            done = [report for report in (self._answer() for _ in range(asked)) if report]
            out = b"".join(done)
            if len(done) == asked:
                out, asked = out + grabs, SETTINGS["grabs"]
                continue
            self.send(out + packet(PRE_SLEEP))
            self.expect(NOOP)
            out, asked = one, 1

    def _answer(self) -> bytes:
        """The report of a job that was given and has run."""
        kind, data = self.next()
        while kind == NOOP:
            kind, data = self.next()
        if kind == NO_JOB:
            return b""
        if kind != JOB_ASSIGN:
            raise RuntimeError(f"gearmand sent {kind} {data[:100]!r}")
        handle, _, body = data.split(b"\0", 2)
        n = json.loads(body)["n"]
        mark(n)
        return packet(WORK_COMPLETE, handle, str(n).encode())


if __name__ == "__main__":
    if working():
        Grabs().run()
    else:
        submits = Submits()
        Producer(submits.one, submits.bulk, submits.answer).run()
