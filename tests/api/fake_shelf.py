"""A shelf with one model on it."""

from node.api.errors import ApiError
from node.execution.interface import ServedModel
from protocol.units import ModelId

SERVED = ServedModel(
    model_id=ModelId(b"m" * 32),
    name="tiny",
    task="generate",
    dtype="fp32",
    device="cpu",
    context_tokens=64,
    tokens_per_s_milli=3500,
    memory_bytes=1 << 20,
    slots=2,
    profile="a test",
)


class OneModel:
    """A shelf that knows ``tiny``."""

    async def load(self, name: str) -> ServedModel:
        await self.unload(name)
        return SERVED

    async def unload(self, name: str) -> None:
        if name != "tiny":
            raise ApiError(f"no model {name}", status=404, code="model_not_found", param="model")
