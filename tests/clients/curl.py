"""Runs the lines of docs/api.md against a cluster, as they stand, and looks at what they print.

    curl.py CLUSTER_JSON
"""

import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def blocks():
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    return re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def methods():
    """Every method of the public services."""
    found = []
    for name in ("chat", "cluster"):
        text = (ROOT / f"proto/chat/v1/{name}.proto").read_text(encoding="utf-8")
        service = re.search(r"^service (\w+)", text, flags=re.MULTILINE)[1]
        found += [f"chat.v1.{service}/{method}" for method in re.findall(r"^  rpc (\w+)\(", text, flags=re.MULTILINE)]
    return found


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        node = json.load(file)["nodes"][0]["web"]
    text = "\n".join(blocks())
    missing = [method for method in methods() if f"$NODE/{method}\"" not in text]
    assert not missing, f"docs/api.md has no line for {missing}"
    # What curl prints has no line end: one is put behind each.
    script = f"set -euo pipefail\ncurl() {{ command curl \"$@\" -w '\\n'; }}\n{text}"
    ran = subprocess.run(["bash", "-c", script], env={**os.environ, "NODE": node}, capture_output=True, text=True)
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    answers = [json.loads(line) for line in ran.stdout.splitlines() if line]
    seen = json.dumps(answers)
    for expected in [
        '"repeated": true',
        '"body": "hello"',
        '"heartbeat"',
        '"MESSAGE_STATUS_READ"',
        '"deletedCount": 1',
        '"leader"',
        '"nodes"',
    ]:
        assert expected in seen, f"{expected} is not in {ran.stdout}"
    print(f"{len(answers)} answers to the lines of docs/api.md, each of {len(methods())} methods among them")


main()
