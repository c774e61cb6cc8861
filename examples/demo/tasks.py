"""The tasks of the demo, written as anybody would write theirs: an app, two functions, and what they need from the environment.

DEMO_SMTP    host:port of the mail server
DEMO_INDEX   file of the search index
"""

from __future__ import annotations

import os
import smtplib
from email.message import EmailMessage
from pathlib import Path

import search_index

from taskq import App, current_task

app = App()


@app.task(max_attempts=5, timeout=30)
def send_email(to: str) -> str:
    """Deliver a mail; a plain function, so it runs in a thread.  The id of the task is the id of the mail: a second delivery can be told."""
    run = current_task()
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "taskq@example.com", to, "Hello from taskq"
    mail["Message-ID"] = f"<{run.id}@taskq.example.com>"
    mail.set_content(f"This mail was sent by task {run.id}, attempt {run.attempt}.")
    host, _, port = os.environ["DEMO_SMTP"].rpartition(":")
    with smtplib.SMTP(host, int(port), timeout=10) as server:
        server.send_message(mail)
    return f"delivered to {to}"


@app.task(queue="index", pool="process", timeout=60)
def index_file(root: str, path: str) -> int:
    """Tokenise a source file and put it into the index; CPU-bound, so it runs in a process.  Returns the number of tokens.

    It is idempotent: a path has one row, which is written anew in one transaction.  So it does not matter if a task runs twice because its worker
    was killed before the broker had heard of the end.
    """
    document = search_index.tokenised(path, (Path(root) / path).read_bytes())
    with search_index.opened(os.environ["DEMO_INDEX"]) as index:
        search_index.put(index, document)
    return document.tokens
