"""beanstalkd, with clients that pipeline: many commands in one write, their answers in one read.

The worker asks for twice as many jobs as last time while it gets all of them, up to `reserves`, and for one, waiting, when there are fewer: a waiting
`reserve` holds up every later command of its connection, the deletes too.
"""

from __future__ import annotations

import json
import re

from bench_client import SETTINGS, Connection, Producer, chunks, mark, payload, working

TTR_S = 600
INSERTED = b"INSERTED "
ANSWER = re.compile(rb"RESERVED (\d+) (\d+)\r\n|TIMED_OUT\r\n|DELETED\r\n|(\w+)[^\r\n]*\r\n")


class Puts(Connection):
    """A producer."""

    def send_all(self, numbers: range) -> None:
        bodies = [json.dumps(payload(n)).encode() for n in numbers]
        self.send(b"".join([b"put 0 0 %d %d\r\n%b\r\n" % (TTR_S, len(body), body) for body in bodies]))
        while self.buffer.count(b"\r\n") < len(bodies):
            self.fill()
        if self.buffer.count(INSERTED) != len(bodies):
            raise RuntimeError(f"beanstalkd answered {bytes(self.buffer[:100])!r}")
        self.buffer.clear()

    def one(self, n: int) -> None:
        self.send_all(range(n, n + 1))

    def bulk(self, numbers: range) -> None:
        for chunk in chunks(numbers, SETTINGS["puts"]):
            self.send_all(range(chunk[0], chunk[-1] + 1))


class Reserves(Connection):
    """The worker."""

    def run(self) -> None:
        asked, deletes = 1, b""
        count = 0
        while True:
            self.send(deletes + b"reserve\r\n" + b"reserve-with-timeout 0\r\n" * (asked - 1))
            ids = self._reserved(asked, count)
            deletes, count = b"".join([b"delete %b\r\n" % each for each in ids]), len(ids)
            asked = min(2 * asked, SETTINGS["reserves"]) if count == asked else 1

    def _reserved(self, asked: int, deleted: int) -> list[bytes]:
        """Run what comes, until everything that was asked is answered."""
        ids: list[bytes] = []
        at, answers = 0, 0
        while answers < asked + deleted:
            found = ANSWER.match(self.buffer, at)
            if found is None or (found[1] and len(self.buffer) < found.end() + int(found[2]) + 2):
                self.fill()
                continue
            at = found.end()
            answers += 1
            if found[3]:
                raise RuntimeError(f"beanstalkd answered {found[0]!r}")
            if found[1]:
                mark(json.loads(self.buffer[at : at + int(found[2])])["n"])
                at += int(found[2]) + 2
                ids.append(found[1])
        self.buffer.clear()
        return ids


if __name__ == "__main__":
    if working():
        Reserves().run()
    else:
        puts = Puts()
        Producer(puts.one, puts.bulk).run()
