"""``python -m node.execution.engine.pth_weights <in.pth> <out.safetensors>``: a PyTorch file's tensors, alone.

For whoever imports a model of his own choice, by hand or in ``scripts/models``: no daemon and no worker reads such
a file. ``weights_only`` lets torch build tensors and nothing else.
"""

import sys

import torch
from safetensors.torch import save_file


def convert(source: str, target: str) -> None:
    """Write the tensors of a state dict; counters of training, which have no sides, stay behind.

    Raises:
        TypeError: the file holds something else than named tensors.
    """
    state = torch.load(source, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise TypeError(f"expected named tensors, got {type(state).__name__}")
    save_file({name: tensor.contiguous() for name, tensor in state.items() if tensor.dim()}, target)


if __name__ == "__main__":
    convert(sys.argv[1], sys.argv[2])
