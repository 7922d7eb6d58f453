"""transformers as an arm of the engine benchmark. Arguments: FOLDER THREADS generate|continuous CONTEXT."""

import sys

import torch
from answering import answer, open_channel, ready
from transformers import AutoModelForCausalLM, GenerationConfig


def main() -> None:
    folder, threads, way, context = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    open_channel()
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.eval()

    def generate(prompts: list[list[int]], count: int) -> list[list[int]]:
        # All prompts of one call have one length: no padding is computed.
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
            )
        return out[:, ids.shape[1] :].tolist()

    def continuous(prompts: list[list[int]], count: int) -> list[list[int]]:
        settings = GenerationConfig(
            max_new_tokens=count,
            eos_token_id=-1,
            pad_token_id=0,
            do_sample=False,
            num_blocks=len(prompts) * (context // 32 + 1),
            max_batch_tokens=max(512, len(prompts)),
        )
        results = model.generate_batch(inputs=prompts, generation_config=settings, progress_bar=False)
        by_number = sorted(results.values(), key=lambda it: int(it.request_id.rpartition("_")[2]))
        return [list(it.generated_tokens) for it in by_number]

    ready()
    answer(f"transformers {way}", generate if way == "generate" else continuous)


main()
