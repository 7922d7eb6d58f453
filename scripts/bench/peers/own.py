"""souk's engine as an arm of the engine benchmark. Arguments: FOLDER THREADS SLOTS CONTEXT."""

import sys
from pathlib import Path

import torch
from answering import answer, open_channel, ready

from node.execution.engine.engine import Engine
from node.execution.engine.llama import load_llama
from node.execution.engine.scheduler import Sequence
from node.execution.shape import read_shape
from protocol.task import Sampling


def main() -> None:
    folder, (threads, slots, context) = Path(sys.argv[1]), map(int, sys.argv[2:5])
    open_channel()
    torch.set_num_threads(threads)
    model = load_llama(folder, read_shape(folder), device=torch.device("cpu"), dtype=torch.bfloat16)
    # As the others are asked: whole prompts at once. Reading them beside running answers is mixed_load.py's.
    engine = Engine(model, slots=slots, context_tokens=context, prefill_tokens=slots * context)

    def generate(prompts: list[list[int]], count: int) -> list[list[int]]:
        sequences = [
            Sequence(
                request=i,
                # No scope: what a prompt has in common with an earlier one is read again, as by the others.
                tokens=list(prompt),
                prompt_tokens=len(prompt),
                tokens_out_max=count,
                sampling=Sampling(),
                stop_tokens=frozenset(),
            )
            for i, prompt in enumerate(prompts)
        ]
        for sequence in sequences:
            engine.add(sequence)
        while not engine.idle:
            engine.step()
        return [sequence.tokens[sequence.prompt_tokens :] for sequence in sequences]

    ready()
    answer("souk", generate)


main()
