"""``config schema``: the settings as JSON Schema, made from the types and the texts of ``node/config.py``."""

import ast
import inspect
from typing import Any, Final

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

Json = dict[str, Any]  # a JSON Schema, whose form is its own specification's


def config_schema() -> Json:
    """Return the schema of ``config.toml``; editors that know TOML complete and check by it."""
    import msgspec

    from node.config import Config

    made = msgspec.json.schema(Config)
    for section, texts in _texts().items():
        for key, text in texts.items():
            made["$defs"][section]["properties"][key]["description"] = text
    return {"$schema": DIALECT, "title": "souk's config.toml"} | made


def _texts() -> dict[str, dict[str, str]]:
    """Return what stands under each field, by class: msgspec knows the types alone."""
    from node import config

    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(config)).body:
        if isinstance(node, ast.ClassDef):
            pairs = zip(node.body, node.body[1:], strict=False)
            found[node.name] = {
                ast.unparse(field.target): " ".join(text.value.value.split())
                for field, text in pairs
                if isinstance(field, ast.AnnAssign)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            }
    return {name: texts for name, texts in found.items() if texts}
