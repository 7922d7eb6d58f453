"""What a worker process does once it is one: the models of a device, and what is asked of them.

Two threads: one reads frames and tokenises prompts, the main one steps the engines. The process ends when its
parent does, and on any error that is not one request's own: its parent starts another one. How it begins and is
confined is ``worker_main.py``'s business.
"""

import os
import queue
import threading
import traceback
from pathlib import Path
from typing import Final, TypeAlias, assert_never

import msgspec
import torch

from node.errors import ExecutionError, JobRefusedError, NodeError
from node.execution.engine.backend import TORCH_DTYPES
from node.execution.engine.faults import tell_fault
from node.execution.engine.items import HeldItems, ServedItems
from node.execution.engine.link import Link
from node.execution.engine.load import Served, load_any
from node.execution.engine.measure import matmul_gflops, read_mb_per_s
from node.execution.engine.memory_limit import bounded_memory
from node.execution.engine.probe import check_products
from node.execution.engine.score import Verdict
from node.execution.engine.served import HeldPrompt, HeldScore, ServedModel
from node.execution.engine.torch_device import describe_device, give_back_memory, limit_memory, open_device
from node.execution.frames import (
    FRAME_BYTES_MAX,
    SDPA,
    Cancel,
    DeviceMeasured,
    Failed,
    Load,
    Loaded,
    Measure,
    Measured,
    MeasureDevice,
    Prepare,
    Prepared,
    PrepareItems,
    Probe,
    Probed,
    Score,
    Scored,
    Setup,
    Start,
    Step,
    StepPiece,
    Unload,
    Unloaded,
)
from node.execution.residency import DEVICE_BUSY, MODEL_BUSY
from protocol import limits

EXIT_FAULT: Final = 1
# A step of a GPU embeds thousands of short texts, whose vectors together are longer than a frame may be.
_PIECES_PER_FRAME: Final = FRAME_BYTES_MAX // (2 * limits.DATA_FRAME_BYTES_MAX)

Held: TypeAlias = HeldPrompt | HeldItems
Work: TypeAlias = Load | Unload | Held | Start | Cancel | MeasureDevice | Probe | Measure | HeldScore


class Worker:
    """The models of one device, and what is asked of them."""

    def __init__(self, link: Link, device: torch.device) -> None:
        self.link, self._device = link, device
        # Filled by the reader, which the daemon's own bound on jobs holds back.
        self.inbox: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self._models: dict[bytes, Served] = {}
        self._held: dict[int, Held] = {}
        self._owner: dict[int, Served] = {}

    def read(self) -> None:
        """Take frames until the daemon is gone, which ends the process. Runs in its own thread."""
        while (frame := self.link.receive()) is not None:
            match frame:
                case Prepare() | PrepareItems():
                    self._prepare(frame)
                case Score():
                    self._prepare_score(frame)
                case Setup():
                    raise ExecutionError("expected one Setup, got a second", code="protocol")
                case _:
                    self.inbox.put(frame)

    def run(self) -> None:
        """Step every model that has something to do; wait only when none has."""
        while True:
            if all(served.idle for served in self._models.values()):
                self._handle(self.inbox.get())
            while not self.inbox.empty():
                self._handle(self.inbox.get())
            self._step()

    def _step(self) -> None:
        # In a function of its own: a name that lives on would keep an unloaded model's memory.
        alone = not any(served.has_jobs for served in self._models.values())
        for served in self._models.values():
            if served.idle:
                continue
            # Sent without pieces too: a long prompt is a sign of life for each of its chunks.
            given = served.step()
            pieces = tuple(it for it in given if isinstance(it, StepPiece))
            for it in given:
                if isinstance(it, Failed) or it.finish is not None:
                    self._owner.pop(it.request, None)
            for first in range(0, max(1, len(pieces)), _PIECES_PER_FRAME):
                self.link.send(Step(pieces=pieces[first : first + _PIECES_PER_FRAME]))
            for it in given:
                if isinstance(it, Failed):
                    self.link.send(it)
            if isinstance(served, ServedModel) and (verdict := served.step_score(alone=alone)):
                self._owner.pop(verdict.request, None)
                self.link.send(_scored(verdict))

    def _handle(self, work: Work) -> None:
        match work:
            case Load():
                self._load(work)
            case Unload():
                self._unload(work)
            case HeldPrompt() | HeldItems():
                self._held[work.request] = work
            case Start():
                self._start(work)
            case Cancel():
                self._held.pop(work.request, None)
                if served := self._owner.pop(work.request, None):
                    served.cancel(work.request)
            case MeasureDevice():
                self._measure_device(work)
            case Probe():
                self._probe(work)
            case Measure():
                self._measure(work)
            case HeldScore():
                served = self._models[work.model]
                assert isinstance(served, ServedModel)
                self._owner[work.task.request] = served
                served.score(work.task)
            case _:
                assert_never(work)

    def _load(self, load: Load) -> None:
        failure = None
        try:
            with bounded_memory(load.memory_bytes_max, Path(load.folder)):
                self._models[load.model] = load_any(load, self._device)
        except Exception as exc:  # a model that cannot be loaded leaves the others; files are wrong in many ways
            failure = str(exc) if isinstance(exc, NodeError) else f"{type(exc).__name__}: {exc}"
        if failure is not None:
            # Not before the error is gone: its frames refer to what had been read. And before the answer: the room
            # is counted as free from then on. On CUDA: not run on a GPU yet.
            give_back_memory(self._device)
            self.link.send(Failed(request=load.request, code="load", message=failure))
            return
        served = self._models[load.model]
        kernels = served.kernels if isinstance(served, ServedModel) else SDPA
        self.link.send(Loaded(request=load.request, kernels=kernels))

    def _unload(self, frame: Unload) -> None:
        served = self._models.get(frame.model)
        is_held = any(held.model == frame.model for held in self._held.values())
        if is_held or (served is not None and not served.idle):
            self.link.send(Failed(request=frame.request, code=MODEL_BUSY, message="jobs use this model"))
            return
        self._models.pop(frame.model, None)
        if isinstance(served, ServedModel):
            served.close()
        del served
        give_back_memory(self._device)
        self.link.send(Unloaded(request=frame.request))

    def _prepare(self, frame: Prepare | PrepareItems) -> None:
        served = self._models.get(frame.model)
        try:
            if served is None:
                raise JobRefusedError("the model is not loaded in this worker", code="model_unknown")
            held = _prepared(served, frame)
        except ExecutionError as exc:
            self.link.send(_refused(frame.request, exc))
            return
        # Before the answer: a Start that follows it must find the prompt.
        self.inbox.put(held)
        self.link.send(Prepared(request=frame.request, tokens=held.units_in))

    def _prepare_score(self, frame: Score) -> None:
        served = self._models.get(frame.model)
        try:
            if served is None:
                raise ExecutionError("the model is not loaded in this worker", code="model_unknown")
            if not isinstance(served, ServedModel):
                raise JobRefusedError("only text is judged by its tokens", code="input")
            self.inbox.put(HeldScore(frame.model, served.prepare_score(frame)))
        except ExecutionError as exc:
            self.link.send(Failed(request=frame.request, code=exc.code, message=str(exc)))

    def _start(self, frame: Start) -> None:
        held = self._held.pop(frame.request, None)
        if held is None:
            self.link.send(Failed(request=frame.request, code="protocol", message="no such prompt is held"))
            return
        served = self._models[held.model]
        self._owner[frame.request] = served
        match served, held:
            case ServedModel(), HeldPrompt():
                served.start(held, frame)
            case ServedItems(), HeldItems():
                served.start(held)
            case _:
                raise AssertionError("a held input is of its model's kind")

    def _measure_device(self, frame: MeasureDevice) -> None:
        self.link.send(
            DeviceMeasured(
                request=frame.request,
                matmul_gflops=max(1, matmul_gflops(self._device, TORCH_DTYPES[frame.dtype], frame.memory_bytes)),
                read_mb_per_s=max(1, read_mb_per_s(self._device, frame.memory_bytes)),
            )
        )
        give_back_memory(self._device)

    def _probe(self, frame: Probe) -> None:
        try:
            check_products(self._device, TORCH_DTYPES[frame.dtype])
        except ExecutionError as exc:
            self.link.send(Failed(request=frame.request, code=exc.code, message=str(exc)))
        else:
            self.link.send(Probed(request=frame.request))

    def _measure(self, frame: Measure) -> None:
        served = self._models.get(frame.model)
        if served is None or not served.idle:
            # The engine asserts that it is alone: a job that came in between must not end the worker. The jobs of
            # other models stand still meanwhile: a model is measured when it is loaded beside them.
            self.link.send(Failed(request=frame.request, code=DEVICE_BUSY, message="jobs use this model"))
            return
        self.link.send(Measured(request=frame.request, tokens_per_s_milli=served.measure()))


def _refused(request: int, exc: ExecutionError) -> Failed:
    if not isinstance(exc, JobRefusedError):
        return Failed(request=request, code=exc.code, message=str(exc))
    return Failed(
        request=request,
        code=exc.code,
        message=str(exc),
        tokens_out_max=exc.tokens_out_max,
        tokens_in_max=exc.tokens_in_max,
    )


def _scored(verdict: Verdict) -> Scored:
    return Scored(
        request=verdict.request,
        margins=tuple(verdict.margins),
        logprobs=tuple(verdict.logprobs),
        fingerprint=verdict.fingerprint,
        distances=tuple(verdict.distances),
    )


def _prepared(served: Served, frame: Prepare | PrepareItems) -> Held:
    """Raises: JobRefusedError."""
    match served, frame:
        case ServedModel(), Prepare():
            return served.prepare(frame)
        case ServedItems(), PrepareItems():
            return served.prepare(frame)
        case _:
            raise JobRefusedError("this model does another task", code="input")


def serve(link: Link, jail: str) -> None:
    """Serve the daemon at the other end of ``link`` until it is gone; ``jail`` is what confines this process.

    Raises:
        ExecutionError: torch does not see the device that was promised.
        Exception: any fault of the engine's; the process cannot go on.
    """
    setup = link.receive()
    if setup is None:
        return
    assert isinstance(setup, Setup)
    device = open_device(setup.device, setup.threads)
    limit_memory(device, setup.memory_percent)
    worker = Worker(link, device)
    threading.Thread(target=_read_then_exit, args=(worker,), daemon=True).start()
    link.send(msgspec.structs.replace(describe_device(device), jail=jail))
    worker.run()


def _read_then_exit(worker: Worker) -> None:
    """Read until the daemon is gone; then, or on a fault, take the whole process along."""
    status = EXIT_FAULT
    try:
        worker.read()
        status = 0
    except BaseException as exc:
        traceback.print_exc()
        worker.link.send(tell_fault(exc))
        raise
    finally:
        # The main thread may be inside a matrix product for seconds.
        os._exit(status)
