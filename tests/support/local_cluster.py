"""A cluster of debug nodes on this machine that can be killed, paused and started again.

    local_cluster.py COMMAND...      runs a command while a cluster runs; CLUSTER_JSON in its environment describes it
"""

import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from waiting import PATIENCE, Not, wait_until

PROGRAMS = Path(os.environ.get("CARGO_TARGET_DIR", Path(__file__).parents[2] / "target")).resolve() / "debug"


class LocalCluster:
    """Owns the processes of `chatd local` and their data. `stop` removes both."""

    scheme = "http"
    #: Where the programs are.
    programs = PROGRAMS
    #: Settings of `chatctl`, to reach the nodes.
    clients = {}

    def __init__(self, nodes=5, settings=None, programs=None):
        """Starts the nodes, with `settings` in their environment, and waits until their addresses are known."""
        self.programs = programs or self.programs
        self.prepare(settings)
        self._run("--nodes", str(nodes), "--base-port", "0")
        self.description = self.data / "cluster.json"
        wait_until("cluster.json", self.description.exists)
        self.nodes = {node["name"]: node for node in json.loads(self.description.read_text())["nodes"]}

    def prepare(self, settings=None):
        self.environment = {**os.environ, **(settings or {})}
        self.directory = tempfile.TemporaryDirectory(prefix="quorum-chat-test-")
        self.data = Path(self.directory.name) / "cluster"
        self.log = open(Path(self.directory.name) / "log", "wb")
        self.processes = []

    def _run(self, *arguments):
        return self.spawn([self.programs / "chatd", "local", "--data", self.data, *arguments], self.environment)

    def spawn(self, command, environment):
        process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env=environment)
        self.processes.append(process)
        return process

    def web(self, name):
        return f"{self.scheme}://{self.nodes[name]['web']}"

    def addresses(self):
        """The addresses for clients."""
        return ",".join(node["grpc"] for node in self.nodes.values())

    def call(self, name, method, message=None, token=None):
        """Calls the JSON API of a node. Retries while there is no leader, because nothing was applied in that case."""

        def attempt():
            try:
                return [self.ask(name, method, message, token)]
            except urllib.error.HTTPError as error:
                if error.code == 503:
                    return Not(error)
                raise

        return wait_until(f"answer to {method}", attempt)[0]

    def ask(self, name, method, message=None, token=None, timeout=10):
        """Like `call`, but without retries."""
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        body = json.dumps(message or {}).encode()
        request = urllib.request.Request(f"{self.web(name)}/chat.v1.{method}", body, headers)
        # The certificate authority exists only for the tests.
        trust = ssl._create_unverified_context() if self.scheme == "https" else None
        with urllib.request.urlopen(request, timeout=timeout, context=trust) as answer:
            return json.load(answer)

    def leader(self):
        """Name of the leader, as reported by the first node that answers."""

        def ask():
            reason = None
            for name in self.nodes:
                try:
                    return self.ask(name, "ClusterService/GetLeader", timeout=2)["leader"]["name"]
                except OSError as error:
                    reason = error
            return Not(reason)

        return wait_until("leader", ask)

    def ready(self, name):
        """Whether a node says that it is ready."""
        try:
            with urllib.request.urlopen(f"http://{self.nodes[name]['metrics']}/readyz", timeout=2) as answer:
                return answer.status == 200
        except OSError as error:
            return Not(f"{name}: {error}")

    def wait_until_ready(self, *names):
        for name in names or self.nodes:
            wait_until(f"{name} is ready", lambda name=name: self.ready(name))

    def signal(self, name, number):
        os.kill(self.nodes[name]["pid"], number)

    def kill(self, *names):
        for name in names:
            self.signal(name, signal.SIGKILL)

    def launch(self, *names):
        """Starts nodes that were killed, and does not wait."""
        for name in names:
            self.nodes[name]["pid"] = self._run("--start", name).pid

    def start(self, *names):
        """Starts nodes that were killed, and waits until they know a leader."""
        self.launch(*names)
        for name in names:
            wait_until(f"answer of {name}", lambda name=name: self.answers(name))

    def answers(self, name):
        """Whether a node answers, and knows a leader."""
        try:
            return self.ask(name, "ClusterService/GetLeader", timeout=2)
        except OSError as error:
            return Not(error)

    def stop(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(PATIENCE)
        self.log.close()
        self.directory.cleanup()

    def tail(self):
        return Path(self.log.name).read_text(errors="replace")[-5000:]


class TlsCluster(LocalCluster):
    """Nodes that have certificates for their clients."""

    scheme = "https"

    def prepare(self, settings=None):
        super().prepare(settings)
        certificates = Path(self.directory.name) / "certificates"
        command = [self.programs / "chatctl", "certs", certificates, "all=127.0.0.1"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        self.environment["CHAT_TLS_CERT"] = str(certificates / "all.pem")
        self.environment["CHAT_TLS_KEY"] = str(certificates / "all.key")
        self.authority = certificates / "ca.pem"
        self.clients = {"CHAT_TLS_CA": str(self.authority)}


def main(command):
    if not command:
        sys.exit(__doc__)
    cluster = LocalCluster()
    try:
        cluster.wait_until_ready()
        code = subprocess.run(command, env={**os.environ, "CLUSTER_JSON": str(cluster.description)}).returncode
        if code:
            print(cluster.tail(), file=sys.stderr)
    finally:
        cluster.stop()
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
