import pytest
import torch

from node.execution.engine.norms import RmsNorm


@pytest.mark.parametrize("rows", [1, 16, 100])
@pytest.mark.parametrize("size", [0.001, 1.0, 300.0])
def test_norm_equals_its_formula(rows: int, size: float) -> None:
    noise = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 96, generator=noise) * size + size / 2
    scale = 1 + torch.randn(96, generator=noise) / 4
    wanted = x.double() * scale.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(RmsNorm(scale, 1e-5)(x).double(), wanted, rtol=2e-6, atol=1e-6)
    rounded = RmsNorm(scale.bfloat16(), 1e-5)(x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    # Half a step of the last of eight bits, of inputs and of the result.
    torch.testing.assert_close(rounded.double(), wanted, rtol=2**-6, atol=2**-8)
