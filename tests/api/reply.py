"""An HTTP answer as tests look at it."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # Any: tests look into it
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, str | None]:
        """Return the error after a check of its shape, which every error has."""
        error: dict[str, str | None] = self.json["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert self.headers["x-request-id"]
        return error
