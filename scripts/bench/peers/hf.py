"""transformers as an arm of the engine benchmark. Arguments: FOLDER THREADS SLOTS CONTEXT generate|continuous."""

import sys

import torch
from answering import Generate, answer, open_channel, ready
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.generation import ContinuousBatchingConfig, ContinuousBatchingManager

PAGE_TOKENS = 256
"""transformers' own choice; pages of 32 and of 640 tokens were no faster here."""


def main() -> None:
    folder, (threads, slots, context), way = sys.argv[1], map(int, sys.argv[2:5]), sys.argv[5]
    open_channel()
    torch.set_num_threads(threads)
    # For continuous batching too: "paged|eager" reads 512 tokens faster (490 for 575 ms), decodes slower up to 8.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.eval()
    if way == "generate":
        ready()
        answer("transformers generate", by_generate(model))
        return
    # One manager for the life of the process, as in a server: generate_batch would make the cache anew each call.
    with model.continuous_batching_context_manager(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=continuous_settings(slots, context),
    ) as manager:
        ready()
        answer("transformers continuous", by_manager(manager))


def by_generate(model: PreTrainedModel) -> Generate:
    """Answer with ``generate``: a padded batch, all of it until the end."""

    def generate(prompts: list[list[int]], count: int) -> list[list[int]]:
        # All prompts of one call have one length: no padding is computed.
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                do_sample=False,
                # Draws a warning; but min_new_tokens would forbid end tokens, and the answers would be others.
                eos_token_id=-1,
                pad_token_id=0,
            )
        return out[:, ids.shape[1] :].tolist()

    return generate


def continuous_settings(slots: int, context: int) -> ContinuousBatchingConfig:
    """Return room for ``slots`` sequences; unasked, the cache would be sized by the machine's memory.

    Not compiled: at level 1 the compiler gave up at the layers' cache (its limit of recompilations), and decoding
    was 5 to 40 % slower.
    """
    return ContinuousBatchingConfig(
        page_size=PAGE_TOKENS,
        num_blocks=slots * -(-context // PAGE_TOKENS),
        # As the others are asked: whole prompts at once.
        max_batch_tokens=slots * context,
        max_requests_per_batch=slots,
        # What a prompt has in common with an earlier one is read again, as by the others.
        allow_block_sharing=False,
        # There is none for a CPU.
        auto_switch_to_flash=False,
    )


def by_manager(manager: ContinuousBatchingManager) -> Generate:
    """Answer with continuous batching, whose loop is a thread of this process; waiting for it takes no polling."""

    def generate(prompts: list[list[int]], count: int) -> list[list[int]]:
        names = manager.add_requests(prompts, max_new_tokens=count)
        answers = {}
        while len(answers) < len(names):
            result = manager.get_result()
            if result is None or result.error is not None:
                raise RuntimeError(f"a request failed: {result and result.error}")
            answers[result.request_id] = list(result.generated_tokens)
        return [answers[name] for name in names]

    return generate


main()
