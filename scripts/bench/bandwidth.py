"""What share of the memory bandwidth one sequence's decoding reaches: each token reads every weight once.

Both are measured in turn, as a worker measures its device and its model at start (``engine/measure.py``): so the
share stands also on a machine that is faster at one hour than at another. The engine in this process.
"""

import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch

from node.execution.decode_library import compile_decode
from node.execution.engine.backend import TORCH_DTYPES
from node.execution.engine.compiled_decode import CompiledDecode
from node.execution.engine.engine import Engine
from node.execution.engine.llama import Llama, load_llama
from node.execution.engine.measure import decode_tokens_per_s_milli, read_mb_per_s
from node.execution.engine.torch_device import describe_device, open_device
from node.execution.model_fit import choose_dtype, decodes_compiled
from node.execution.shape import read_shape
from node.models.store import ModelStore
from scripts.bench.measure import Report, parser_of

READ_BYTES: Final = 512 << 20
"""More than caches hold."""


def main() -> None:
    """Measure in turns and print one row for each figure."""
    parser = parser_of(__doc__, rounds=15)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="name in the store (default %(default)s)")
    parser.add_argument("--models", type=Path, default=Path(sys.prefix) / "share" / "models", help="the store")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    report = Report("bandwidth")
    device = open_device("cpu", options.threads)
    dtype = choose_dtype("auto", describe_device(device).dtypes)
    stored = ModelStore(options.models).find(options.model)
    shape = read_shape(stored.folder)
    # Of a table that is not the head as well, a token reads one row.
    unread = 0 if shape.tied_embeddings else shape.vocabulary * shape.hidden
    token_bytes = (stored.parameters - unread) * torch.finfo(TORCH_DTYPES[dtype]).bits // 8
    report.settings = {"model": options.model, "dtype": dtype, "threads": options.threads, "bytes": token_bytes}
    with TemporaryDirectory() as folder:
        library = compile_decode(Path(folder)) if decodes_compiled(shape, "cpu", dtype) else None
        arms = {"decode at 1": load(stored.folder, device, TORCH_DTYPES[dtype], None)}
        if library is not None:
            arms["compiled decode at 1"] = load(stored.folder, device, TORCH_DTYPES[dtype], library)
    reads: list[float] = []
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(options.rounds):
        reads.append(float(read_mb_per_s(device, READ_BYTES)))
        for name, arm in arms.items():
            rates[name].append(decode_tokens_per_s_milli(*arm) / 1000)
    report.add("memory read", "MB/s", reads)
    for name, its in rates.items():
        report.add(name, "tok/s", its)
        report.add(f"{name}, weights read", "MB/s", [rate * token_bytes / 1e6 for rate in its])
        shares = [100 * rate * token_bytes / 1e6 / read for rate, read in zip(its, reads, strict=True)]
        report.add(f"{name}, share of the memory bandwidth", "%", shares)
    report.print(as_json=options.json)


def load(folder: Path, device: torch.device, dtype: torch.dtype, library: Path | None) -> tuple[Llama, Engine]:
    """Return the model with an engine of one slot, which decodes by ``library`` where there is one."""
    model = load_llama(folder, read_shape(folder), device=device, dtype=dtype, plain_layers=library is not None)
    engine = Engine(model, slots=1, context_tokens=256, prefill_tokens=256)
    if library is not None:
        engine.decode_by(partial(CompiledDecode, library))
    return model, engine


if __name__ == "__main__":
    main()
