"""What a worker is asked about its device: to measure it or a model on it, and to prove that it is right."""

from typing import Final

from node.config import WorkerSection
from node.execution.frames import DeviceMeasured, Measure, Measured, MeasureDevice, Probe, Probed, Ready
from node.execution.measurements import DeviceRates
from node.execution.model_fit import choose_dtype
from node.execution.worker_process import WorkerProcess
from protocol.fields import Dtype
from protocol.units import ModelId

# Large matrices on a slow core, and memory that is touched for the first time.
MEASURE_S_MAX: Final = 600.0


async def probe_device(process: WorkerProcess, ready: Ready, config: WorkerSection) -> None:
    """Let the device compute what is known, in fp32 and in the dtype that is served.

    Raises:
        ExecutionError, WorkerDiedError: it did not, or nobody knows.
    """
    with process.open_request(1) as request:
        await request.send(Probe(request=request.number, dtype=choose_dtype(config.dtype, ready.dtypes)))
        answer = await request.receive()
    assert isinstance(answer, Probed)


async def measure_model(process: WorkerProcess, model_id: ModelId) -> Measured:
    """Return how fast the device and this model are now.

    Raises:
        ExecutionError, WorkerDiedError: it could not be measured.
    """
    with process.open_request(1) as request:
        await request.send(Measure(request=request.number, model=model_id))
        answer = await request.receive()
    assert isinstance(answer, Measured)
    return answer


async def measure_rates(process: WorkerProcess, dtype: Dtype, memory_bytes: int) -> DeviceRates:
    """Return what the device does now, whatever its model, measured in so much of its memory.

    Raises:
        ExecutionError, WorkerDiedError: it could not be measured.
    """
    with process.open_request(1, silence_s_max=MEASURE_S_MAX) as request:
        await request.send(MeasureDevice(request=request.number, dtype=dtype, memory_bytes=memory_bytes))
        answer = await request.receive()
    assert isinstance(answer, DeviceMeasured)
    return DeviceRates(matmul_gflops=answer.matmul_gflops, read_mb_per_s=answer.read_mb_per_s)
