"""A program that behaves as ``souk serve`` does towards whoever starts it; its node's name says how it ends."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

from node.home import ApiInfo, Home


def main() -> None:
    home = Home(Path(sys.argv[2]))
    config = tomllib.loads(home.config_path.read_text())
    behaviour = config.get("log", {}).get("format", "auto")
    name = config["node"]["name"]
    settings = sorted(key for key in os.environ if key.startswith("SOUK_"))
    print(f"{name} starts; settings {settings}", flush=True)  # noqa: T201  the log that is shown when a node dies
    if behaviour == f"dies:{name}":
        sys.exit(f"{name} cannot start")
    if behaviour == f"stubborn:{name}":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A worker ends with its node, when its input does; a stubborn node's does not.
    program = "import signal; signal.pause()" if behaviour.startswith("stubborn") else "input()"
    worker = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, start_new_session=True)
    home.path.joinpath("worker").write_text(str(worker.pid))
    if behaviour == f"silent:{name}":
        os.kill(int(config["p2p"]["network"]), signal.SIGINT)
        signal.pause()
    home.path.joinpath("seen").write_text(json.dumps(config))
    home.write_api(
        ApiInfo(
            url="http://127.0.0.1:1",
            token_file="",
            pid=os.getpid(),
            peer_id=f"peer of {name}",
            addresses=(f"/ip4/127.0.0.1/tcp/1/p2p/{name}",),
        )
    )
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
