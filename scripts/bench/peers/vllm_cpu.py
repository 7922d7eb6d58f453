"""vLLM's CPU build as an arm of the engine benchmark. Arguments: FOLDER THREADS SLOTS CONTEXT eager|compiled."""

import os
import sys

from answering import answer, open_channel, ready


def main() -> None:
    folder, (threads, slots, context), mode = sys.argv[1], map(int, sys.argv[2:5]), sys.argv[5]
    open_channel()
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}" if threads > 1 else "0",
        # In this process: its processor time is what is measured.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
    }
    from vllm import LLM, SamplingParams

    model = LLM(
        model=folder,
        dtype="bfloat16",
        max_model_len=context,
        max_num_seqs=slots,
        enforce_eager=mode == "eager",
        enable_prefix_caching=False,
        disable_log_stats=True,
    )

    def generate(prompts: list[list[int]], count: int) -> list[list[int]]:
        settings = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        wanted = [{"prompt_token_ids": prompt} for prompt in prompts]
        results = model.generate(wanted, settings, use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in results]

    ready()
    answer(f"vLLM {mode}", generate)


if __name__ == "__main__":
    main()
