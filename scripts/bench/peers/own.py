"""souk's engine as an arm of the engine benchmark. Arguments: FOLDER THREADS SLOTS CONTEXT [COMPILED_FOLDER].

With the last one, decode steps are compiled into that folder and used.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from answering import answer, open_channel, ready

from node.execution.decode_library import compile_decode
from node.execution.engine.compiled_decode import CompiledDecode
from node.execution.engine.engine import Engine
from node.execution.engine.llama import load_llama
from node.execution.engine.torch_device import open_device
from node.execution.shape import read_shape
from tests.execution.engine.greedy import answers


def main() -> None:
    folder, (threads, slots, context) = Path(sys.argv[1]), map(int, sys.argv[2:5])
    open_channel()
    device = open_device("cpu", threads)
    library = compile_decode(Path(sys.argv[5])) if len(sys.argv) > 5 else None
    model = load_llama(
        folder,
        read_shape(folder),
        device=device,
        dtype=torch.bfloat16,
        plain_layers=library is not None,
    )
    # As the others are asked: whole prompts at once. Reading them beside running answers is mixed_load.py's.
    engine = Engine(model, slots=slots, context_tokens=context, prefill_tokens=slots * context)
    if library is not None:
        engine.decode_by(partial(CompiledDecode, library))

    def generate(prompts: list[list[int]], count: int) -> list[list[int]]:
        # In no scope: what a prompt has in common with an earlier one is read again, as by the others.
        return answers(engine, prompts, count)

    ready()
    answer("souk", generate)


main()
