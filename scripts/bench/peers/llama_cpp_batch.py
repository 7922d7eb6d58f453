"""llama.cpp as an arm of the engine benchmark. Arguments: WEIGHTS THREADS SLOTS CONTEXT.

Through its batch interface, one sequence id for each prompt: the usual Python calls know one sequence only.
"""

import sys

import llama_cpp
import numpy as np
from answering import answer, open_channel, ready


def main() -> None:
    weights, (threads, slots, context) = sys.argv[1], map(int, sys.argv[2:5])
    open_channel()
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(weights.encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = slots * context, slots * context, 512
    settings.n_seq_max, settings.n_threads, settings.n_threads_batch = slots, threads, threads
    state = llama_cpp.llama_init_from_model(model, settings)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(slots * context, 0, 1)

    def put(token: int, position: int, sequence: int, wanted: bool) -> None:
        i = batch.n_tokens
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
        batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        batch.n_tokens += 1

    def decode(rows: list[int]) -> list[int]:
        if llama_cpp.llama_decode(state, batch):
            raise RuntimeError("llama_decode failed")
        chosen = []
        for row in rows:
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(state, row), shape=(vocabulary,))
            chosen.append(int(logits.argmax()))
        return chosen

    def generate(prompts: list[list[int]], count: int) -> list[list[int]]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(state), True)
        batch.n_tokens, ends = 0, []
        for i, prompt in enumerate(prompts):
            for position, token in enumerate(prompt):
                put(token, position, i, position == len(prompt) - 1)
            ends.append(batch.n_tokens - 1)
        answers = [[token] for token in decode(ends)]
        while len(answers[0]) < count:
            batch.n_tokens = 0
            for i, tokens in enumerate(answers):
                put(tokens[-1], len(prompts[i]) + len(tokens) - 1, i, True)
            for tokens, token in zip(answers, decode(list(range(len(answers)))), strict=True):
                tokens.append(token)
        return answers

    ready()
    answer("llama.cpp", generate)


main()
