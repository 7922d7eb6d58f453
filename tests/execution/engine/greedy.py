"""An engine that answers prompts greedily, without text, workers or processes."""

from collections.abc import Sequence as Items

from node.execution.engine.engine import Engine
from node.execution.engine.scheduler import Sequence
from protocol.task import Sampling


def answers(engine: Engine, prompts: Items[Items[int]], count: int) -> list[list[int]]:
    """Return ``count`` greedy tokens for each prompt, as many at a time as the engine has slots."""
    sequences = [
        Sequence(
            request=number,
            tokens=list(prompt),
            prompt_tokens=len(prompt),
            tokens_out_max=count,
            sampling=Sampling(),
            stop_tokens=frozenset(),
        )
        for number, prompt in enumerate(prompts)
    ]
    for sequence in sequences:
        engine.add(sequence)
    while not engine.idle:
        engine.step()
    return [sequence.tokens[sequence.prompt_tokens :] for sequence in sequences]
