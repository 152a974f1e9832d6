"""Nodes for the tests of the page: as `chatd local` starts them, or each at an address of its own."""

import os
import socket
import subprocess

from local_cluster import PROGRAMS, LocalCluster


def free_port(host):
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


class Spread(LocalCluster):
    """Nodes that a browser sees on separate hosts. Each serves its page at another address of this machine."""

    def __init__(self, hosts, tls=False):
        self.prepare()
        self.data.mkdir()
        self.scheme = "https" if tls else "http"
        if tls:
            names = [f"n{at}={host}" for at, host in enumerate(hosts, 1)]
            command = [PROGRAMS / "chatctl", "certs", self.data / "certs", *names]
            subprocess.run(command, check=True, stdout=self.log, stderr=self.log)
        self.nodes = {}
        for at, host in enumerate(hosts, 1):
            ports = {port: f"127.0.0.1:{free_port(host)}" for port in ("grpc", "peer", "metrics")}
            ports["web"] = f"{host}:{free_port(host)}"
            self.nodes[f"n{at}"] = {"name": f"n{at}", "tls": tls, **ports}
        self.launch(*self.nodes)
        self.leader()

    def launch(self, *names):
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
                settings["CHAT_TLS_CERT"] = str(certificates / f"{name}.pem")
                settings["CHAT_TLS_KEY"] = str(certificates / f"{name}.key")
            node["pid"] = self.spawn([PROGRAMS / "chatd"], {**os.environ, **settings}).pid
