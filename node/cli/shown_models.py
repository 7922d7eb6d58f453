"""Models of the store as ``souk models`` shows them: their JSON, and the text for people."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from node.cli.output import Payload, columns, facts, short, size

if TYPE_CHECKING:
    from node.models.eviction import Decision
    from node.models.stored import StoredModel


def shown_model(model: "StoredModel", *, with_files: bool = False) -> dict[str, object]:
    """Return the JSON of one model."""
    from node.models.holding import is_held

    shown: dict[str, object] = {
        "name": model.name,
        "model_id": model.model_id.hex(),
        "task": model.task,
        "architecture": model.manifest.architecture,
        "context_tokens": model.manifest.context_tokens,
        "parameters": model.parameters,
        "size_bytes": model.manifest.size_bytes,
        "source": model.about.source,
        "pinned": model.about.pinned,
        "served": is_held(model.folder),
        "used_at": datetime.fromtimestamp(model.used_at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "folder": str(model.folder),
    }
    if with_files:
        shown["files"] = [
            {
                "name": file.name,
                "size_bytes": file.size,
                "sha256": file.sha256.hex(),
                "chunks": len(file.chunks) // 32,
            }
            for file in model.manifest.files
        ]
    return shown


def shown_decision(decision: "Decision") -> dict[str, object]:
    """Return the JSON of what became of one model."""
    return {
        "name": decision.name,
        "model_id": decision.model_id.hex(),
        "size_bytes": decision.size_bytes,
        "removed": decision.removed,
        "reason": decision.reason,
    }


def told(decision: "Decision") -> str:
    """Return what became of one model as a sentence."""
    verb = "removed" if decision.removed else "kept"
    return f"{verb} {decision.name} ({size(decision.size_bytes)}): {decision.reason}"


def store_table(payload: Payload) -> str:
    if not payload["models"]:
        return "The store is empty: souk models add PATH."
    rows = [
        [
            m["name"],
            short(m["model_id"]),
            m["context_tokens"],
            m["parameters"],
            size(m["size_bytes"]),
            m["served"],
            m["pinned"],
            m["used_at"][:10],
            m["source"],
        ]
        for m in payload["models"]
    ]
    return columns(("MODEL", "ID", "CONTEXT", "PARAMETERS", "SIZE", "SERVED", "PINNED", "USED", "SOURCE"), rows)


def model_table(found: Payload) -> str:
    lines = facts(
        [
            ("model", found["name"]),
            ("id", found["model_id"]),
            ("task", f"{found['task']}, {found['architecture']}, context {found['context_tokens']:,}"),
            ("size", f"{size(found['size_bytes'])}, {found['parameters']:,} parameters"),
            ("source", found["source"]),
            ("folder", found["folder"]),
            ("served", found["served"]),
            ("pinned", found["pinned"]),
            ("used", found["used_at"]),
        ]
    )
    rows = [[file["name"], file["size_bytes"], file["chunks"], file["sha256"]] for file in found["files"]]
    return f"{lines}\n\n{columns(('FILE', 'BYTES', 'CHUNKS', 'SHA-256'), rows)}"


def loaded_table(found: Payload) -> str:
    return (
        f"{found['name']} answers on {found['device']} in {found['dtype']}: {found['slots']} at once, context "
        f"{found['context_tokens']:,}, {found['tokens_per_s']:.1f} tokens/s, {size(found['memory_bytes'])}"
    )
