import resource

import torch

from node.execution.engine.torch_device import open_device


def test_device_computes_fp32_and_sums_16_bits_as_the_profiles_say() -> None:
    open_device("cpu", 1)
    backends = torch.backends
    assert backends.cuda.matmul.fp32_precision == backends.cudnn.conv.fp32_precision == "ieee"
    assert backends.mkldnn.matmul.fp32_precision == backends.mkldnn.conv.fp32_precision == "ieee"
    assert not backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    assert not backends.cuda.matmul.allow_fp16_reduced_precision_reduction


def test_memory_that_one_layer_freed_is_there_for_the_next() -> None:
    open_device("cpu", 1)
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            layer = [torch.empty(24 << 20, dtype=torch.uint8).fill_(1) for _ in range(4)]
            del layer
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    # Given back each time, they are 24,576 pages to be had again, or 48 huge ones.
    assert faults < 48
