"""Checks the Compose file against the image, the settings, and a running agent, whose address is the argument (HOST:PORT)."""
import pathlib
import re
import subprocess
import sys

import yaml

SERVICE = yaml.safe_load(open("contrib/compose/opik-offline.yaml"))["services"]["opik-offline"]
HOST, PORT = sys.argv[1].split(":")

image = pathlib.Path("contrib/container/Containerfile").read_text()
assert SERVICE["image"] in image, "the image is not the one that the Containerfile names"
for name in ("OPIK_OFFLINE_DB", "OPIK_OFFLINE_LISTEN"):
    assert f"{name}={SERVICE['environment'][name]}" in image, f"{name} is not that of the image"
settings = pathlib.Path("docs/configuration.md").read_text()
unknown = [name for name in SERVICE["environment"] if f"`{name}`" not in settings]
assert not unknown, f"not settings: {unknown}"
assert "depends_on" not in SERVICE and "profiles" not in SERVICE, "the agent has to run while Opik does not"
assert [port.startswith("127.0.0.1:") for port in SERVICE["ports"]] == [True], "other machines reach the port"

kind, shell, flag, script = SERVICE["healthcheck"]["test"]
assert (kind, shell, flag) == ("CMD", "bash", "-c"), "the health check is not a bash script"


def is_healthy(port):
    text = re.sub(r"127\.0\.0\.1/6745", f"{HOST}/{port}", script.replace("$$", "$"))
    return subprocess.run(["bash", "-c", text], stderr=subprocess.DEVNULL, timeout=60).returncode == 0


assert is_healthy(PORT), "the health check fails with a healthy agent"
assert not is_healthy(9), "the health check succeeds without an agent"
