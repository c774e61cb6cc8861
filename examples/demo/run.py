"""The demo: a mail by curl, a search index of Python's standard library, and a kill -9 in the middle of it.

    python examples/demo/run.py            (or: make demo)

A broker and workers are started as real processes on free ports, with a data folder of their own; nothing is left behind.  Exit code 0 when
every check held, 1 when one did not.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import attrs
import search_index
from mail import Mailbox, mail_server
from processes import Program, environment
from screen import progress, say, step, table

from taskq import AsyncClient, TaskInfo

REQUEST = '{"task_type":"send_email","payload":{"to":"user@example.com"}}'
QUERY = "priority queue heap"
HITS = 5
WAIT_S = 120.0
# a busy machine may take its time; what does not move at all for so long is stuck, and is said on the way
STALLED_S, SAY_S = 120, 10
KILL_AT = 0.4
RUN_AGAIN = ("crashed", "interrupted", "undelivered")


@attrs.define
class Demo:
    """What runs, and the figures and checks that are collected on the way."""

    folder: Path
    mailbox: Mailbox
    broker: Program | None = None
    worker: Program | None = None
    workers: int = 0
    tcp: str = ""
    http: str = ""
    figures: list[tuple[str, str]] = attrs.field(factory=list)
    failed: list[str] = attrs.field(factory=list)

    def check(self, what: str, holds: bool) -> None:
        say(f"{'✓' if holds else '✗ NOT TRUE:'} {what}")
        if not holds:
            self.failed.append(what)

    def figure(self, name: str, value: str) -> None:
        self.figures.append((name, value))

    # ---- processes

    async def start_broker(self) -> None:
        step("A broker: 4 shards, SQLite, every acknowledged task on disk")
        arguments = ["--shards", "4", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data", str(self.folder / "data")]
        self.broker = await Program.start("broker", arguments, self.folder / "broker.log", environment())
        line = await self.broker.first_line()
        say(line)
        found = dict(part.split("=", 1) for part in line.split() if "=" in part)
        self.tcp, self.http = found["tcp"], found["http"]
        self.figure("durability", found["durability"])

    async def start_worker(self) -> None:
        """A worker process, and wait until the broker lists it."""
        self.workers += 1
        name = f"demo-{self.workers}"
        told = environment(TASKQ_URL=self.tcp, DEMO_SMTP=self.mailbox.address, DEMO_INDEX=str(self.index_file))
        arguments = ["--app", "tasks", "--name", name, "--concurrency", "16", "--queues", "default,index"]
        self.worker = await Program.start("worker", arguments, self.folder / "worker.log", told)
        async with AsyncClient(self.tcp) as client, asyncio.timeout(WAIT_S):
            while not any(row["name"] == name for row in await client.workers()):
                if self.worker.process.returncode is not None:
                    raise RuntimeError("the worker ended; see worker.log above")
                await asyncio.sleep(0.05)
        say(f"worker {name} is connected, pid {self.worker.process.pid}")

    @property
    def index_file(self) -> Path:
        return self.folder / "index.sqlite"

    async def stop(self) -> None:
        """Whatever still runs; called at the end in every case."""
        for program in (self.worker, self.broker):
            if program is not None and program.process.returncode is None:
                await program.kill()

    # ---- (a) a mail

    async def send_a_mail(self) -> None:
        step("A task by HTTP: one curl, one real mail")
        created = await self.post(REQUEST)
        task_id = created["id"]
        say(f"answer: {json.dumps(created)}")
        info = await self.end_of(task_id)
        self.check(f"the task is completed: {info['result']!r}", info["state"] == "completed")
        self.check("the mail server has received one mail, to user@example.com", [to_of(mail) for mail in self.mailbox.mails] == ["user@example.com"])
        for mail in self.mailbox.mails:
            for line in mail.strip().splitlines():
                say(f"  │ {line}")
        self.figure("mails delivered", str(len(self.mailbox.mails)))

    async def end_of(self, task_id: str) -> Any:
        """The task as HTTP shows it, when it has ended."""
        for _ in range(STALLED_S // SAY_S):
            info = await asyncio.to_thread(get_json, self.http, f"/v1/tasks/{task_id}?wait={SAY_S}")
            if info["finished_ms"]:
                return info
            say(f"the task is {info['state']} {info.get('blocker') or ''}")
        raise RuntimeError(f"task {task_id} has not ended within {STALLED_S} s; the logs of broker and worker are above")

    async def post(self, body: str) -> Any:
        """By curl where there is one, and say which."""
        url = f"http://{self.http}/enqueue"
        curl = shutil.which("curl")
        if curl is None:
            say("there is no curl here, so Python's http.client sends the request")
            return await asyncio.to_thread(post_json, self.http, "/enqueue", body)
        say(f"$ curl -X POST {url} -H 'Content-Type: application/json' -d '{body}'")
        arguments = ["--silent", "--show-error", "--max-time", "20", "-X", "POST", url, "-H", "Content-Type: application/json", "-d", body]
        process = await asyncio.create_subprocess_exec(curl, *arguments, stdout=asyncio.subprocess.PIPE)
        answer, _ = await process.communicate()
        return json.loads(answer)

    # ---- (b) and (c) the index, and the kill

    async def build_index(self) -> None:
        root = Path(sysconfig.get_paths()["stdlib"])
        files = standard_library(root)
        step(f"A search index of Python's standard library: {len(files):,} source files, one task each")
        say(f"{root}; the workers tokenise each file and write it into an SQLite FTS5 table")
        search_index.create(str(self.index_file))
        async with AsyncClient(self.tcp) as client:
            began = time.monotonic()
            handles = await client.enqueue_many("index_file", [{"root": str(root), "path": path} for path in files], queue="index")
            enqueued_s = time.monotonic() - began
            say(f"{len(handles):,} tasks enqueued and on disk in {enqueued_s:.3f} s")
            infos = await self.follow(client, [handle.id for handle in handles])
            seconds = time.monotonic() - began
        self.figure("index tasks", f"{len(files):,}")
        self.figure("  enqueued durably", f"{len(files) / enqueued_s:,.0f} tasks/s")
        self.figure("  from the first enqueue to the last result", f"{seconds:.1f} s, {len(files) / seconds:,.0f} tasks/s (tokenising is the work)")
        self.examine(files, infos)

    async def follow(self, client: AsyncClient, task_ids: list[str]) -> list[TaskInfo]:
        """Wait for all results, which the broker pushes, however long it takes while there is progress; kill the worker on the way."""
        ended: asyncio.Queue[asyncio.Future[TaskInfo]] = asyncio.Queue()
        waiting = [asyncio.ensure_future(client.wait(task_id)) for task_id in task_ids]
        for each in waiting:
            each.add_done_callback(ended.put_nowait)
        infos: list[TaskInfo] = []
        killed_s = 0.0
        try:
            with progress("indexed", len(task_ids)) as show:
                while len(infos) < len(task_ids):
                    infos.append((await self.next_of(ended, client)).result())
                    show(len(infos))
                    if not killed_s and len(infos) >= KILL_AT * len(task_ids):
                        killed_s = time.monotonic()
                        await self.kill_worker(client)
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        self.figure(
            "  from the kill to the last result", f"{time.monotonic() - killed_s:.1f} s (a dead worker's tasks are given to others after 15 s)"
        )
        return infos

    async def next_of(self, ended: asyncio.Queue[asyncio.Future[TaskInfo]], client: AsyncClient) -> asyncio.Future[TaskInfo]:
        """The next task that has ended.  While none does, what is waited for is said; RuntimeError if nothing moves at all."""
        for number in range(1, STALLED_S // SAY_S + 1):
            with suppress(TimeoutError):
                return await asyncio.wait_for(ended.get(), SAY_S)
            rows = [row for row in await client.queues() if row["queue"] == "index"]
            left = ", ".join(f"{row['running']} running, {row['pending']} pending, {row['retrying']} to be retried" for row in rows)
            say(f"no task has ended for {number * SAY_S} s; {left}, {len(await client.workers())} workers connected")
        raise RuntimeError(f"no task has ended for {STALLED_S} s; the logs of broker and worker are above")

    async def kill_worker(self, client: AsyncClient) -> None:
        assert self.worker is not None
        [queue] = [row for row in await client.queues() if row["queue"] == "index"]
        await self.worker.kill()
        say(f"kill -9 of the worker, keeper, runner and all, while it held {queue['running']} tasks; a new one is started")
        await self.start_worker()
        self.figure("workers killed with kill -9", "1")

    def examine(self, files: list[str], infos: list[TaskInfo]) -> None:
        again = [info for info in infos if any(attempt["outcome"] in RUN_AGAIN for attempt in info.fields["attempts"])]
        with search_index.opened(str(self.index_file)) as index:
            found, twice = search_index.paths(index), search_index.written_again(index)
            step("Is it all there, once?")
            say("Delivery is at-least-once: a task whose worker dies is run again, even if it was almost done. The handler is idempotent")
            say("(one row a path, written in one transaction), so that the effect is there exactly once.")
            self.check(f"all {len(infos):,} tasks are completed", len(infos) == len(files) and all(info.state == "completed" for info in infos))
            self.check(f"the index has {len(found):,} documents for {len(files):,} files", len(found) == len(files))
            self.check("they are the same paths, each exactly once", sorted(found) == sorted(files))
            self.check(f"{len(again)} tasks were delivered again after the kill", len(again) > 0)
            self.figure("tasks delivered again", f"{len(again)}, {twice} of which had written their row already")
            step(f"A query: {QUERY}")
            hits = search_index.search(index, QUERY, HITS)
            for path, title in hits:
                say(f"{path:<28} {title}")
            self.check("it has hits", bool(hits))

    # ---- the end

    async def finish(self) -> None:
        step("An orderly stop")
        assert self.worker is not None and self.broker is not None
        self.check("the worker ended with exit code 0", await self.worker.stop() == 0)
        self.check("the broker ended with exit code 0", await self.broker.stop() == 0)


def standard_library(root: Path) -> list[str]:
    """The paths of its source files, without what was installed beside it."""
    others = {"site-packages", "dist-packages", "__pycache__"}
    found = (path.relative_to(root) for path in root.rglob("*.py") if path.is_file())
    return sorted(str(path) for path in found if not others & set(path.parts))


def to_of(mail: str) -> str:
    return next((line[4:] for line in mail.splitlines() if line.startswith("To: ")), "")


def post_json(address: str, path: str, body: str) -> Any:
    return _ask(address, "POST", path, body)


def get_json(address: str, path: str) -> Any:
    return _ask(address, "GET", path, None)


def _ask(address: str, method: str, path: str, body: str | None) -> Any:
    connection = http.client.HTTPConnection(address, timeout=40)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


async def run(folder: Path) -> int:
    """All steps; the exit code."""
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        demo = Demo(folder, await stack.enter_async_context(mail_server()))
        stack.push_async_callback(demo.stop)
        await demo.start_broker()
        step("A worker")
        await demo.start_worker()
        await demo.send_a_mail()
        await demo.build_index()
        await demo.finish()
    demo.figure("the whole demo", f"{time.monotonic() - began:.1f} s on {os.cpu_count()} CPUs, Python {sys.version.split()[0]}")
    step("Figures")
    table(demo.figures)
    print(f"\n{len(demo.failed)} checks failed" if demo.failed else "\nAll checks held.", flush=True)
    return 1 if demo.failed else 0


async def until_signalled(folder: Path) -> int:
    """Run; Ctrl-C and SIGTERM clean up first."""
    running = asyncio.ensure_future(run(folder))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    with suppress(asyncio.CancelledError):
        return await running
    print("\nstopped; everything is cleaned up", flush=True)
    return 130


def main() -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    with tempfile.TemporaryDirectory(prefix="taskq-demo-") as folder:
        try:
            return asyncio.run(until_signalled(Path(folder)))
        except Exception:
            for log in sorted(Path(folder).glob("*.log")):
                print(f"---- {log.name}\n{log.read_text()[-5_000:]}", file=sys.stderr)
            raise


if __name__ == "__main__":
    sys.exit(main())
