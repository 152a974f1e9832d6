"""Actions of operators and clients on the cluster. They run the commands of the documentation."""

import base64
import json
import os

import yaml

from engine import EngineError, Not, docker, run, wait_until

from .fields import Manifests
from .made import LABEL

SOCKET = "/data/admin.sock"
# Number of changes after which a workload has finished creating its accounts.
AT_WORK = 100


def chatctl(pod, *arguments, **options):
    """`kubectl exec POD -- chatctl ...`, through the pod's own node."""
    words = ["chatctl", "--nodes", "127.0.0.1:50051", "--timeout", "20", "--output", "json"]
    return pod.exec(*words, *arguments, **options)


def status(pod):
    """The parsed output of `chatctl status` for an operator. Waits until the node has its socket."""

    def ask():
        return chatctl(pod, "status", "--socket", SOCKET).stdout

    return json.loads(wait_until(f"status of {pod.name}", ask, 20))


def nodes(pod):
    """The members, by name."""
    return {node["name"]: node for node in status(pod)["nodes"]}


def leader(pod):
    return next(name for name, node in nodes(pod).items() if node["role"] == "leader")


def voters(pod):
    return sorted(name for name, node in nodes(pod).items() if node["voter"])


def are_level(pod, count):
    """Whether this many nodes are healthy voters, have caught up, and had the same state at the last comparison."""
    said = status(pod)
    if len(said["nodes"]) != count:
        return Not(f"{len(said['nodes'])} nodes")
    for node in said["nodes"]:
        if not (node["voter"] and node["healthy"] and node["lag_entries"] == 0):
            return Not(f"{node}")
    digests = {node["digest"] for node in said["nodes"]}
    if len(digests) != 1 or None in digests or said["compared"]["revision"] != said["revision"]:
        return Not(f"digests {digests}, compared {said['compared']}, revision {said['revision']}")
    return said


def one_pod(name, image, *command, labels=None, secret=None):
    """`kubectl run NAME --image=IMAGE --restart=Never --command -- ...` with the settings that the restricted profile
    requires. A given Secret is mounted at /certs."""
    volumes = [{"name": "certs", "secret": {"secretName": secret, "defaultMode": 0o440}}] if secret else []
    mounts = [{"name": "certs", "mountPath": "/certs", "readOnly": True}] if secret else []
    group = {"fsGroup": 65532} if secret else {}
    text = yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels or {"run": name}},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 120,
                "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **group},
                "volumes": volumes,
                "containers": [
                    {
                        "name": name,
                        "image": image,
                        "imagePullPolicy": "IfNotPresent",
                        "command": list(command),
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "readOnlyRootFilesystem": True,
                            "capabilities": {"drop": ["ALL"]},
                        },
                        "volumeMounts": mounts,
                    }
                ],
            },
        }
    )
    return Manifests([text]).documents[0]


class Outsider:
    """A client on the machine that uses `kubectl port-forward` or a load balancer. The cluster's names do not resolve
    there."""

    def __init__(self, cluster, image):
        self.cluster, self.image = cluster, image
        self.address = f"{cluster.network.services['quorum-chat'].address}:50051"

    def words(self, *arguments):
        # The session persists between calls.
        volume = self.cluster.node.claim("outsider")
        session = ["--volume", f"{volume}:/data", "--env", "CHAT_SESSION_FILE=/data/sessions.json"]
        options = ["--rm", "--interactive", "--label", LABEL, "--network", "host", *session]
        options += ["--entrypoint", "/usr/local/bin/chatctl"]
        return ["run", *options, self.image, "--nodes", self.address, *arguments]

    def chatctl(self, *arguments, text=""):
        return docker(*self.words(*arguments), input=text)


class Authority:
    """The certificate authority, based on `chatctl certs`. Its files are on a volume of its own."""

    # Maximum number of pods. The certificate contains their names.
    PODS = 7

    def __init__(self, cluster, image):
        self.cluster, self.image = cluster, image
        hosts = ["quorum-chat.default", "quorum-chat.default.svc"]
        for number in range(self.PODS):
            peer = f"quorum-chat-{number}.quorum-chat-peers"
            hosts += [peer, f"{peer}.default.svc"]
        self.named = f"quorum-chat={','.join(hosts)}"

    def secret(self):
        """Makes a certificate for all nodes and returns the data of the Secret `quorum-chat-certs`."""
        volume = self.cluster.node.claim("authority")
        run_it = ["run", "--rm", "--label", LABEL, "--volume", f"{volume}:/data"]
        run_it += ["--entrypoint", "/usr/local/bin/chatctl"]
        docker(*run_it, self.image, "certs", "/data/certs", self.named)
        made = os.path.join(docker("volume", "inspect", "--format", "{{.Mountpoint}}", volume), "certs")
        files = {"tls.crt": "quorum-chat.pem", "tls.key": "quorum-chat.key", "ca.crt": "ca.pem"}
        data = {}
        for key, name in files.items():
            with open(os.path.join(made, name), "rb") as file:
                data[key] = base64.b64encode(file.read()).decode()
        return data


class Workload:
    """`chatctl verify` in a pod of its own, through the clients' Service, until `judged` is called."""

    # Far longer than a run. A signal ends the load earlier.
    SECONDS = 1800

    def __init__(self, cluster, name, image, clients=6, tls=False, namespace="default"):
        self.cluster = cluster
        # The short name does not resolve in another namespace.
        service = "quorum-chat" if namespace == "default" else "quorum-chat.default.svc.cluster.local"
        command = ["/usr/local/bin/chatctl", "--nodes", f"{service}:50051", "--output", "json"]
        command += [*(["--tls-ca", "/certs/ca.crt"] if tls else []), "verify"]
        command += ["--clients", str(clients), "--seconds", str(self.SECONDS)]
        self.begun_at = self._revision()
        self.pod = cluster.run(one_pod(name, image, *command, secret="quorum-chat-certs" if tls else None), namespace)
        cluster.node.wait_for(lambda: self._revision() > self.begun_at + AT_WORK, f"{name} at work", 60)

    def _revision(self):
        return status(next(pod for pod in self.cluster.set.all() if pod.ready))["revision"]

    def judged(self):
        """Ends the load, waits for the verdict and returns it. A bad verdict fails the test."""
        if self.pod.exit_code is not None:
            raise AssertionError(f"the workload had ended already: {self.pod.logs()}")
        run("docker", "kill", "--signal", "TERM", self.pod.container)
        code = self.cluster.finished(self.pod)
        done = run("docker", "logs", self.pod.container)
        self.cluster.end(self.pod)
        if code != 0:
            raise AssertionError(f"exit code {code}: {done.stdout}{done.stderr}")
        return _good(json.loads(done.stdout))


def drill(cluster, image, kubectl):
    """Runs `chatctl drill kubectl` on the machine itself and returns the verdict. A bad verdict fails the test."""
    program = os.path.join(kubectl.directory, "chatctl")
    copied = docker("create", "--label", LABEL, image)
    docker("cp", f"{copied}:/usr/local/bin/chatctl", program)
    docker("rm", copied)
    address = f"{cluster.network.services['quorum-chat'].address}:50051"
    command = [program, "--nodes", address, "--output", "json", "drill", "--yes", "--hold", "2"]
    command += ["kubectl", "--namespace", "default"]
    path = f"{kubectl.directory}:{os.environ['PATH']}"
    done = run(*command, env={**os.environ, "PATH": path}, timeout=600, check=False)
    if done.returncode != 0:
        raise AssertionError(f"exit code {done.returncode}: {done.stdout}{done.stderr}; called: {kubectl.called}")
    return _good(json.loads(done.stdout)["verdict"])


def _good(verdict):
    counts = ("lost", "duplicated", "reordered", "phantom", "stale_reads", "resume_gaps")
    wrong = {name: verdict[name] for name in counts}
    if any(wrong.values()) or verdict["acknowledged"] == 0 or verdict["nodes_read_back"] == 0:
        raise AssertionError(f"{verdict}")
    return verdict


def reaches(pid, address, port):
    """Whether a connection can be opened from a container's network. It has a timeout because a filter that drops
    packets sends no answer."""
    program = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2)"
    inside = ("nsenter", "--target", str(pid), "--net")
    try:
        run(*inside, "python3", "-c", program, address, str(port))
        return True
    except EngineError as error:
        if "TimeoutError" in str(error) or "timed out" in str(error):
            return False
        raise
