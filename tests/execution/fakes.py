"""A driver's management library with two cards, whose queries fail where a test says so."""


class NVMLError(Exception):
    pass


class FakeNvml:
    """Answers for two cards; ``failing`` names the functions that raise ``NotSupported``."""

    NVMLError = NVMLError

    def __init__(self, failing: frozenset[str] = frozenset()) -> None:
        self._failing = failing

    def _answer(self, name: str, value: object) -> object:
        if name in self._failing:
            raise NVMLError("NotSupported")
        return value

    def nvmlSystemGetDriverVersion(self) -> object:
        return self._answer("nvmlSystemGetDriverVersion", b"610.20")

    def nvmlDeviceGetCount(self) -> object:
        return self._answer("nvmlDeviceGetCount", 2)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:
        return self._answer("nvmlDeviceGetHandleByIndex", f"handle {index}")

    def nvmlDeviceGetUUID(self, handle: str) -> object:
        return self._answer("nvmlDeviceGetUUID", f"GPU-{handle[-1]}")
