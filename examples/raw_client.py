"""The wire protocol by hand: enqueue a task, work it and acknowledge it with sockets and msgpack alone.  See docs/protocol.md.

python examples/raw_client.py localhost:7000
"""

import socket
import struct
import sys

import msgpack

HELLO, ERROR, BYE, ENQUEUE, CONSUME, CREDIT, DELIVER, ACK, GET = 0x1, 0xA, 0xC, 0x100, 0x102, 0x103, 0x104, 0x105, 0x10C
PREFIX = struct.Struct(">IBBHII")  # length, version, flags, kind, seq, head length


def send(stream, kind, seq, fields, payload=b""):
    head = msgpack.packb(fields)
    stream.write(PREFIX.pack(12 + len(head) + len(payload), 1, 0, kind, seq, len(head)) + head + payload)
    stream.flush()


def receive(stream, wanted_kind=None):
    while True:  # frames that answer nothing may come at any time
        length, _, _, kind, seq, head_bytes = PREFIX.unpack(stream.read(16))
        head, payload = msgpack.unpackb(stream.read(head_bytes)), stream.read(length - 12 - head_bytes)
        if kind == ERROR:
            sys.exit(f"{head[0]}: {head[1]}")
        if kind == wanted_kind or (wanted_kind is None and seq):
            return head, payload


def ask(stream, kind, fields, payload=b""):
    send(stream, kind, 1, fields, payload)  # one request at a time, so the same seq will do
    return receive(stream)


def connect(role):
    stream = socket.create_connection(tuple(sys.argv[1].rsplit(":", 1)), timeout=30).makefile("rwb")
    ask(stream, HELLO, [1, role, {"name": "raw", "sdk": "by hand"}])
    return stream


producer, worker = connect("producer"), connect("worker")
payload = msgpack.packb({"name": "world"})
# sixteen zero bytes: the broker makes the id
(task_id, *_), _ = ask(producer, ENQUEUE, [[len(payload)], "raw", bytes(16), ["raw.greet"]], payload)
ask(worker, CONSUME, [["raw"], ["raw.greet"], 1])
for allowed in range(1, 1_000):  # whatever waits in the queue, until it is our task; a longer life needs a HEARTBEAT now and then
    send(worker, CREDIT, 0, [allowed])
    (_, _, _, ids, tokens, *_), arguments = receive(worker, DELIVER)
    result = msgpack.packb(f"hello {msgpack.unpackb(arguments)['name']}")
    (outcomes,), _ = ask(worker, ACK, [[len(result)], ids, tokens], result)
    if ids == task_id and outcomes == b"\x00":
        break
(sizes, info), both = ask(producer, GET, [task_id, 10_000])
print(f"{task_id.hex()} {info['state']} {msgpack.unpackb(both[sizes[0] :])!r}")
for stream in (worker, producer):
    ask(stream, BYE, [])
