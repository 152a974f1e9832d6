"""Five nodes on this machine that can be killed, paused and started again."""

import json
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

PROGRAMS = Path(os.environ.get("CARGO_TARGET_DIR", Path(__file__).parents[2] / "target")) / "debug"
#: Time limit of every wait, in seconds. Only a fault reaches it.
PATIENCE = 60


def until(what, check, patience=PATIENCE):
    """Waits until `check` returns a true value, and returns that value."""
    deadline = time.monotonic() + patience
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"in {patience} s there was no {what}")
        time.sleep(0.05)


class Cluster:
    """Owns the processes and their data. `stop` removes both."""

    scheme = "http"

    def __init__(self, nodes=5):
        self.begin()
        self._run("--nodes", str(nodes), "--base-port", "0")
        until("cluster", (self.data / "cluster.json").exists)
        self.nodes = {node["name"]: node for node in json.loads((self.data / "cluster.json").read_text())["nodes"]}

    def begin(self):
        self.directory = tempfile.TemporaryDirectory(prefix="browser-test-")
        self.data = Path(self.directory.name) / "cluster"
        self.log = open(Path(self.directory.name) / "log", "wb")
        self.processes = []

    def _run(self, *arguments):
        command = [PROGRAMS / "chatd", "local", "--data", self.data, *arguments]
        process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        self.processes.append(process)
        return process

    def web(self, name):
        return f"{self.scheme}://{self.nodes[name]['web']}"

    def call(self, name, method, message=None, token=None):
        """Calls the JSON API of a node. Retries while there is no leader, because nothing was applied in that case."""

        def attempt():
            try:
                return [self.ask(name, method, message, token)]
            except urllib.error.HTTPError as error:
                if error.code == 503:
                    return None
                raise

        return until(f"answer to {method}", attempt)[0]

    def ask(self, name, method, message=None, token=None, timeout=10):
        """Like `call`, but without retries."""
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        request = urllib.request.Request(f"{self.web(name)}/chat.v1.{method}", json.dumps(message or {}).encode(), headers)
        # The certificate authority exists only for the tests.
        trust = ssl._create_unverified_context() if self.scheme == "https" else None
        with urllib.request.urlopen(request, timeout=timeout, context=trust) as answer:
            return json.load(answer)

    def leader(self):
        """Name of the leader, as reported by the first node that answers."""

        def ask():
            for name in self.nodes:
                try:
                    return self.ask(name, "ClusterService/GetLeader", timeout=2)["leader"]["name"]
                except OSError:
                    continue
            return None

        return until("leader", ask)

    def signal(self, name, number):
        os.kill(self.nodes[name]["pid"], number)

    def kill(self, *names):
        for name in names:
            self.signal(name, signal.SIGKILL)

    def launch(self, *names):
        """Like `start`, but does not wait until the nodes answer."""
        for name in names:
            self.nodes[name]["pid"] = self._run("--start", name).pid

    def start(self, *names):
        """Starts nodes that were killed."""
        self.launch(*names)
        for name in names:
            until(f"answer of {name}", lambda name=name: self._answers(name))

    def _answers(self, name):
        try:
            return self.ask(name, "ClusterService/GetLeader", timeout=2)
        except OSError:
            return None

    def stop(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(PATIENCE)
        self.log.close()
        self.directory.cleanup()

    def tail(self):
        return Path(self.log.name).read_text(errors="replace")[-5000:]


def free_port(host):
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


class Spread(Cluster):
    """Nodes that a browser sees on separate hosts. Each serves its page at another address of this machine."""

    def __init__(self, hosts, tls=False):
        self.begin()
        self.data.mkdir()
        self.scheme = "https" if tls else "http"
        if tls:
            command = [PROGRAMS / "chatctl", "certs", self.data / "certs", *(f"n{at}={host}" for at, host in enumerate(hosts, 1))]
            subprocess.run(command, check=True, stdout=self.log, stderr=self.log)
        self.nodes = {}
        for at, host in enumerate(hosts, 1):
            ports = {port: f"{host if port == 'web' else '127.0.0.1'}:{free_port(host)}" for port in ("grpc", "peer", "web", "metrics")}
            self.nodes[f"n{at}"] = {"name": f"n{at}", "tls": tls, **ports}
        for name in self.nodes:
            self.start(name, wait=False)
        self.leader()

    def start(self, *names, wait=True):
        for name in names:
            node = self.nodes[name]
            settings = {
                "CHAT_NAME": name,
                "CHAT_LISTEN": node["grpc"],
                "CHAT_PEER_LISTEN": node["peer"],
                "CHAT_PEER_SECRET": "the-secret-of-the-nodes-in-tests",
                "CHAT_WEB_LISTEN": node["web"],
                "CHAT_METRICS_LISTEN": node["metrics"],
                "CHAT_DATA_DIR": str(self.data / name),
                "CHAT_INITIAL_NODES": ",".join(f"{other['name']}={other['peer']}" for other in self.nodes.values()),
            }
            if node["tls"]:
                certificates = self.data / "certs"
                settings |= {"CHAT_TLS_CERT": str(certificates / f"{name}.pem"), "CHAT_TLS_KEY": str(certificates / f"{name}.key")}
            process = subprocess.Popen([PROGRAMS / "chatd"], env={**os.environ, **settings}, stdout=self.log, stderr=self.log)
            self.processes.append(process)
            node["pid"] = process.pid
        for name in names if wait else ():
            until(f"answer of {name}", lambda name=name: self._answers(name))
