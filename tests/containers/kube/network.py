"""The network of the pods, with addresses, the cluster's DNS, Services and policies.

- The network is a Docker bridge. Each pod has its own address. Addresses are never reused, so a recreated pod has
  another one.
- This module serves DNS by the rules of a cluster. It resolves the names of Services, and of pods below a headless
  Service. Pods that are not ready have a name only if the Service publishes them. Queries are not forwarded, and
  Docker's own DNS is not used.
- A Service with an address is a small proxy that passes each connection to one of the ready pods. It refuses
  connections when no pod is ready.
- A NetworkPolicy becomes packet filter rules inside each pod that it selects.
"""

import ipaddress
import os
import random
import selectors
import socket
import socketserver
import struct
import threading

from engine import docker, run

from .fields import ManifestError
from .made import LABEL
from .spec import selects

SUBNET = ipaddress.ip_network("10.244.77.0/24")
NODE = SUBNET[1]
DNS = "10.96.77.10"
SERVICES = [f"10.96.77.{number}" for number in range(20, 40)]
BRIDGE = "quorum-test"
DOMAIN = "svc.cluster.local"


class Service:
    def __init__(self, fields, address):
        spec = fields.at("spec")
        self.name = fields.value["metadata"]["name"]
        self.headless = spec.get("clusterIP") == "None"
        self.publish_not_ready = spec.get("publishNotReadyAddresses", False)
        self.selector = spec.need("selector")
        if spec.get("type", "ClusterIP") != "ClusterIP":
            raise ManifestError(f"{spec.path}: only ClusterIP is known here")
        # The network here has IPv4 alone: a preference for both families is met with that.
        if spec.get("ipFamilyPolicy", "SingleStack") not in ("SingleStack", "PreferDualStack"):
            raise ManifestError(f"{spec.path}: the cluster has one address family")
        self.ports = []
        for port in spec.each("ports"):
            port.get("name")
            self.ports.append((port.need("port"), port.get("targetPort", port.value["port"])))
        self.address = None if self.headless else address


class Network:
    """Created by `start` and removed by `stop`. `pods()` lists the current pods."""

    def __init__(self, pods):
        self.pods = pods
        self.services = {}
        self.policies = []
        self.servers = []
        self.setting_policies = threading.Lock()
        self.addresses = (str(address) for address in SUBNET.hosts() if address > SUBNET[9])
        # (name, namespace) of the pods that were found by DNS before they were ready.
        self.found_unready = set()

    def start(self, services, policies):
        docker(*"network create --label".split(), LABEL, "--subnet", str(SUBNET), "--gateway", str(NODE),
               "--opt", f"com.docker.network.bridge.name={BRIDGE}", BRIDGE)
        run("ip", "address", "add", f"{DNS}/32", "dev", BRIDGE)
        self._serve(_Udp((DNS, 53), _dns_handler(self)))
        for fields, address in zip(services, SERVICES):
            service = Service(fields, address)
            self.services[service.name] = service
            if service.address is not None:
                run("ip", "address", "add", f"{service.address}/32", "dev", BRIDGE)
                for port, target in service.ports:
                    self._serve(_Tcp((service.address, port), _proxy_handler(self, service, target)))
        self.policies = [Policy(fields) for fields in policies]

    def stop(self):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def _serve(self, server):
        self.servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def new_address(self):
        return next(self.addresses)

    def endpoints(self, service):
        """The pods behind a Service."""
        return [
            pod
            for pod in self.pods()
            if pod.namespace == "default"
            and selects(service.selector, pod.spec.labels)
            and (pod.ready or service.publish_not_ready)
            and (not pod.terminating or service.publish_not_ready)
        ]

    def resolve(self, name):
        """The addresses of a full name, or `None` if the name does not exist."""
        parts = name.lower().rstrip(".").removesuffix(f".{DOMAIN}").split(".")
        if not name.lower().rstrip(".").endswith(f".{DOMAIN}") or parts[-1] != "default" or len(parts) not in (2, 3):
            return None
        service = self.services.get(parts[-2])
        if service is None:
            return None
        if len(parts) == 2 and not service.headless:
            return [service.address]
        pods = self.endpoints(service)
        if len(parts) == 3:
            pods = [pod for pod in pods if pod.name == parts[0] and pod.subdomain == service.name]
            if not service.headless or not pods:
                return None
        self.found_unready.update(pod.name for pod in pods if not pod.ready)
        return [pod.address for pod in pods]

    def apply_policies(self):
        """Brings the packet filters of all running pods up to date."""
        with self.setting_policies:
            self._apply_policies()

    def _apply_policies(self):
        pods = [pod for pod in self.pods() if pod.pid]
        for pod in pods:
            rules = self._rules(pod, pods)
            if rules is not None and rules != pod.rules:
                inside = ("nsenter", "--target", str(pod.pid), "--net")
                done = run(*inside, "iptables-restore", input=rules, check=False)
                # A container that has ended in the meantime has no network to filter.
                if done.returncode != 0 and os.path.exists(f"/proc/{pod.pid}/ns/net"):
                    raise ManifestError(f"the policies of {pod.name} cannot be set: {done.stderr.strip()}")
                pod.rules = rules

    def _rules(self, pod, pods):
        selecting = [policy for policy in self.policies if policy.selects(pod)]
        if not selecting:
            return None
        policies = {
            kind: [policy.rules[kind] for policy in selecting if policy.rules[kind] is not None]
            for kind in ("Ingress", "Egress")
        }
        verdict = {kind: "DROP" if found else "ACCEPT" for kind, found in policies.items()}
        lines = [
            "*filter",
            f":INPUT {verdict['Ingress']} [0:0]",
            ":FORWARD ACCEPT [0:0]",
            f":OUTPUT {verdict['Egress']} [0:0]",
        ]
        for chain, way in (("INPUT", "-i"), ("OUTPUT", "-o")):
            lines.append(f"-A {chain} {way} lo -j ACCEPT")
            lines.append(f"-A {chain} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT")
        # The machine itself always has access. The kubelet's probes come from there, and here also the proxies'
        # connections.
        lines.append(f"-A INPUT -s {NODE}/32 -j ACCEPT")
        for kind, chain, side in (("Ingress", "INPUT", "-s"), ("Egress", "OUTPUT", "-d")):
            for peers, ports in [rule for rules in policies[kind] for rule in rules]:
                addresses = peers(self, pods) if peers else ["0.0.0.0/0"]
                for protocol, port in ports:
                    number = pod.spec.container.ports[port] if isinstance(port, str) else port
                    lines += [
                        f"-A {chain} -p {protocol} {side} {address} --dport {number} -j ACCEPT"
                        for address in addresses
                    ]
        return "\n".join([*lines, "COMMIT", ""])


class Policy:
    """The rules of a NetworkPolicy for each direction, or `None` for a direction that it does not restrict."""

    def __init__(self, fields):
        spec = fields.at("spec")
        self.labels = spec.at("podSelector").get("matchLabels", {})
        kinds = spec.need("policyTypes")
        if not kinds or not set(kinds) <= {"Ingress", "Egress"}:
            raise ManifestError(f"{spec.path}.policyTypes: only Ingress and Egress are known here")
        self.rules = {"Ingress": None, "Egress": None}
        for kind, side in (("Ingress", "from"), ("Egress", "to")):
            if kind in kinds:
                self.rules[kind] = [self._rule(rule, side) for rule in spec.each(kind.lower())]

    def selects(self, pod):
        return pod.namespace == "default" and selects(self.labels, pod.spec.labels)

    def _rule(self, rule, side):
        peers = [self._peer(peer) for peer in rule.each(side)]
        ports = []
        for port in rule.each("ports"):
            protocol = port.get("protocol", "TCP")
            if protocol not in ("TCP", "UDP"):
                raise ManifestError(f"{port.path}: only TCP and UDP are known here")
            if side == "to" and isinstance(port.value["port"], str):
                raise ManifestError(f"{port.path}: the ports of others have no names here")
            ports.append((protocol.lower(), port.need("port")))
        if not ports:
            raise ManifestError(f"{rule.path}: a rule for all ports is not known here")
        return (_union(peers) if peers else None, ports)

    @staticmethod
    def _peer(peer):
        """The addresses that a peer of a rule selects. Includes proxies that represent pods here."""
        if "namespaceSelector" in peer:
            selector = peer.at("namespaceSelector")
            labels = selector.get("matchLabels", {})
            if not labels:
                return lambda network, pods: [str(SUBNET)]
            if set(labels) != {"kubernetes.io/metadata.name"}:
                raise ManifestError(f"{selector.path}: namespaces have no other label than their name here")
            name = labels["kubernetes.io/metadata.name"]
            dns = [DNS] if name == "kube-system" else []
            return lambda network, pods: dns + [p.address for p in pods if p.namespace == name]
        if "ipBlock" in peer:
            block = str(ipaddress.ip_network(peer.at("ipBlock").need("cidr")))
            return lambda network, pods: [block]
        labels = peer.at("podSelector").get("matchLabels", {})

        def addresses(network, pods):
            # Plug-ins check the endpoint of a connection to a Service. Here that is the Service's proxy.
            proxied = [s for s in network.services.values() if s.address]
            services = [s.address for s in proxied if labels.items() <= s.selector.items()]
            return services + [p.address for p in pods if p.namespace == "default" and selects(labels, p.spec.labels)]

        return addresses


def _union(peers):
    return lambda network, pods: sorted({address for peer in peers for address in peer(network, pods)})


class _Udp(socketserver.ThreadingUDPServer):
    daemon_threads = True
    allow_reuse_address = True


class _Tcp(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128


def _dns_handler(network):
    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            query, sock = self.request
            sock.sendto(answer(query, network.resolve), self.client_address)

    return Handler


def answer(query, resolve):
    """The answer to a DNS query with one question."""
    (number, _, questions) = struct.unpack(">HHH", query[:6])
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace"))
        at += 1 + query[at]
    question = query[12 : at + 5]
    (kind,) = struct.unpack(">H", query[at + 1 : at + 3])
    addresses = resolve(".".join(labels)) if questions == 1 else None
    # The response is authoritative. It is NXDOMAIN for an unknown name, and empty for a name without records of this
    # type.
    flags = 0x8580 | (3 if addresses is None else 0)
    found = addresses if addresses and kind == 1 else []
    records = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 5, 4) + socket.inet_aton(a) for a in found)
    return struct.pack(">HHHHHH", number, flags, 1, len(found), 0, 0) + question + records


def _proxy_handler(network, service, target):
    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            ready = network.endpoints(service)
            if not ready:
                # Close with a reset, as kube-proxy refuses connections to a Service without endpoints.
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            pod = random.choice(ready)
            port = pod.spec.container.ports[target] if isinstance(target, str) else target
            try:
                with socket.create_connection((pod.address, port), timeout=5) as other:
                    other.settimeout(None)
                    _pump(self.request, other)
            except OSError:
                pass  # The pod is stopping. The caller's connection ends, and the caller opens another one.

    return Handler


def _pump(one, two):
    with selectors.DefaultSelector() as ready:
        ready.register(one, selectors.EVENT_READ, two)
        ready.register(two, selectors.EVENT_READ, one)
        while True:
            for key, _ in ready.select():
                data = key.fileobj.recv(65536)
                if not data:
                    return
                key.data.sendall(data)
