import torch

from node.execution.engine.torch_device import open_device


def test_device_computes_fp32_and_sums_16_bits_as_the_profiles_say() -> None:
    open_device("cpu", 1)
    backends = torch.backends
    assert backends.cuda.matmul.fp32_precision == backends.cudnn.conv.fp32_precision == "ieee"
    assert backends.mkldnn.matmul.fp32_precision == backends.mkldnn.conv.fp32_precision == "ieee"
    assert not backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    assert not backends.cuda.matmul.allow_fp16_reduced_precision_reduction
