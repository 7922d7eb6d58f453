"""``batch``: many requests from a file through the daemon, a bounded number at once; goes on where it ended.

The daemon gives each request to the peer that is free, so what is asked at once spreads over peers. Threads ask,
this one writes; a thread that waits for its answer holds nothing but a connection, whose end cancels the job.
"""

import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from node.cli.batch_files import Answers, Outcome, Request, check_requests, read_requests
from node.cli.client import ApiError, Daemon, find_daemon
from node.cli.exits import CliError, Exit
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import Payload, console, emit, note

# Longer than a job's own deadline in the daemon.
ANSWER_S: Final = 660.0
BACKOFF_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(slots=True)
class Count:
    """How the lines of this run ended."""

    answered: int = 0
    failed: int = 0


class Asking:
    """Threads that take requests from an iterator and put outcomes into a queue, which ends with None for each."""

    def __init__(self, daemon: Daemon, requests: Iterator[Request], tries: int) -> None:
        self._daemon, self._requests, self._tries = daemon, requests, tries
        self._taking = threading.Lock()
        self._stopped = threading.Event()

    def run(self, outcomes: "queue.Queue[Outcome | Exception | None]") -> None:
        """Ask one after the other. What concerns the daemon as a whole ends everything."""
        try:
            while not self._stopped.is_set():
                with self._taking:
                    request = next(self._requests, None)
                if request is None:
                    return
                outcomes.put(self._ask(request))
        except Exception as exc:  # the edge of one thread: what stayed in it would end the command as a success
            self._stopped.set()
            outcomes.put(exc)
        finally:
            outcomes.put(None)

    def stop(self) -> None:
        self._stopped.set()

    def _ask(self, request: Request) -> Outcome:
        for wait_s in (*BACKOFF_S[: self._tries], None):
            outcome = self._ask_once(request)
            if not outcome.may_pass or wait_s is None or self._stopped.wait(wait_s):
                break
        return outcome

    def _ask_once(self, request: Request) -> Outcome:
        try:
            body = self._daemon.request("POST", request.url, request.body, wait_s=ANSWER_S)
        except ApiError as exc:
            return Outcome(
                custom_id=request.custom_id, status=exc.status, body=None, code=exc.api_code, message=str(exc)
            )
        except CliError as exc:
            if exc.code is not Exit.FAILED:
                raise  # no daemon, or not with this token: true for every line
            return Outcome(custom_id=request.custom_id, status=0, body=None, code="broken_off", message=str(exc))
        return Outcome(custom_id=request.custom_id, status=200, body=body)


@click.command(cls=SoukCommand)
@click.argument("requests", metavar="IN.jsonl", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("answers", metavar="OUT.jsonl", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--concurrency", type=click.IntRange(1, 64), default=8, show_default=True, help="Requests asked at once."
)
@click.option(
    "--retry",
    type=click.IntRange(0, len(BACKOFF_S)),
    default=3,
    show_default=True,
    help="How often a request is asked again when its failure may pass.",
)
@pass_globals
def batch(options: Globals, requests: Path, answers: Path, concurrency: int, retry: int) -> int:
    """Ask every line of IN.jsonl and append each answer to OUT.jsonl, in OpenAI's batch format.

    A second run asks what has no answer yet, and what failed for a reason that may pass; the last line of a
    custom_id counts. Ends with 1 when a line failed, in this run or in one before.
    """
    ids = check_requests(requests)
    if answers.exists() and answers.samefile(requests):
        raise CliError("expected two files, got one for both", Exit.USAGE)
    daemon = find_daemon(options)
    count = Count()
    with Answers(answers) as out:
        if out.mended_bytes:
            note(options, f"{answers}: its last line was cut ({out.mended_bytes} bytes): asked again")
        skipped = sum(custom_id in out.done for custom_id in ids)
        failed_before = sum(custom_id in out.failed for custom_id in ids)
        if skipped:
            note(options, f"{skipped} of {len(ids)} are done: going on with the other {len(ids) - skipped}")
        asking = Asking(daemon, read_requests(requests, out.done), retry)
        try:
            with _bar(options, len(ids), skipped) as bar:
                _gather(asking, out, count, bar, min(concurrency, max(1, len(ids) - skipped)))
        except KeyboardInterrupt:
            asking.stop()
            left = len(ids) - skipped - count.answered - count.failed
            raise CliError(
                f"stopped: {count.answered} answered, {count.failed} failed, {left} left; what was under way is "
                f"cancelled. The same command goes on from here",
                Exit.INTERRUPTED,
            ) from None
    summary: dict[str, object] = {
        "schema": 1,
        "requests": len(ids),
        "skipped": skipped,
        "answered": count.answered,
        "failed": count.failed,
        "failed_before": failed_before,
        "answers": str(answers),
    }
    emit(options, summary, table=_summary_text)
    return Exit.FAILED if count.failed or failed_before else Exit.DONE


def _summary_text(found: Payload) -> str:
    text = f"{found['answered']} answered, {found['failed']} failed, {found['skipped']} done before"
    if found["failed_before"]:
        text += f", {found['failed_before']} of them failed for good: {found['answers']} says why"
    return text


class _Bar:
    """Shows nothing; ``_RichBar`` shows where a person looks."""

    def step(self, count: Count) -> None:
        """Count one more line."""


def _gather(asking: Asking, out: Answers, count: Count, bar: _Bar, threads: int) -> None:
    """Write outcomes as they come until every thread has ended. Raises: what a thread met first."""
    outcomes: queue.Queue[Outcome | Exception | None] = queue.Queue(threads * 2)
    for _ in range(threads):
        # Ends with the process at the latest: a request may wait for minutes.
        threading.Thread(target=asking.run, args=(outcomes,), daemon=True).start()
    fault: Exception | None = None
    while threads:
        match outcomes.get():
            case None:
                threads -= 1
            case Outcome() as outcome:
                out.add(outcome)
                count.answered += outcome.is_answered
                count.failed += not outcome.is_answered
                bar.step(count)
            case exc:
                fault = fault or exc
    if isinstance(fault, CliError):
        raise CliError(
            f"{fault}\n  {count.answered} were answered; the same command goes on", fault.code
        ) from fault
    if fault is not None:
        raise fault


@contextmanager
def _bar(options: Globals, total: int, done: int) -> Iterator[_Bar]:
    if options.quiet or not sys.stderr.isatty():
        yield _Bar()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    texts = TextColumn("{task.description}")
    shown = Progress(
        texts, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console(options, stderr=True)
    )
    with shown:
        task = shown.add_task("asking", total=total, completed=done)

        class RichBar(_Bar):
            def step(self, count: Count) -> None:
                failed = f"{count.failed} failed" if count.failed else "asking"
                shown.update(task, advance=1, description=failed)

        yield RichBar()
