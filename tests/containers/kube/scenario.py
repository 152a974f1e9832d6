"""The life of a cluster, from `kubectl apply -f k8s/` on. Each step follows an operator's procedure in
docs/operations.md or simulates the effect of a machine on pods, and then checks the result."""

import base64
import os
import threading
import time
import urllib.request

from engine import run, wait_until

from . import people
from .kubectl import Kubectl
from .people import Authority, Outsider, Workload, chatctl, one_pod, reaches
from .pod import Pod
from .spec import read_pod


def execute(cluster, manifests, examples, image):
    scenario = Scenario(cluster, manifests, examples, image)
    for step in (
        scenario.apply,
        scenario.pods_are_confined,
        scenario.names_resolve,
        scenario.prometheus_finds_the_metrics,
        scenario.the_peer_port_is_closed,
        scenario.somebody_chats_from_outside,
        scenario.rolling_update,
        scenario.a_bad_update_stands_still,
        scenario.drains_go_one_by_one,
        scenario.pods_are_deleted_and_a_volume_is_lost,
        scenario.a_drill_finds_nothing,
        scenario.two_more_join,
        scenario.and_are_removed,
        scenario.a_removed_node_stays_out_until_its_volume_is_gone,
        scenario.the_survivors_of_a_lost_majority_are_left_alone,
        scenario.all_stop_and_get_a_secret,
        scenario.all_get_certificates,
        scenario.certificates_are_renewed_under_running_pods,
        scenario.a_backup_becomes_a_new_cluster,
        scenario.one_volume_of_five_becomes_a_new_cluster,
        scenario.all_are_level,
    ):
        began = time.monotonic()
        said = step()
        print(f"{step.__name__.replace('_', ' ')}: {time.monotonic() - began:.0f} s{'; ' + said if said else ''}")


def report(cluster):
    """Diagnostics for a failed step."""
    for pod in cluster.all_pods:
        print(
            f"--- {pod.name}: ready {pod.ready}, {pod.restarts} restarts, exit code {pod.exit_code}, "
            f"{pod.waiting}, {pod.probed}"
        )
        if pod.container:
            done = run("docker", "logs", "--tail", "15", pod.container, check=False)
            print(done.stdout + done.stderr)
    print(f"ends: {cluster.node.ends}")


class Scenario:
    def __init__(self, cluster, manifests, examples, image):
        self.cluster, self.manifests, self.examples, self.image = cluster, manifests, examples, image
        self.set = None
        self.authority = None

    @property
    def pods(self):
        return self.set.pods

    def apply(self):
        self.cluster.apply(self.manifests)
        self.set = self.cluster.set
        self.set.wait_ready()
        # The Job has created the secret, and made no other request.
        assert self.cluster.api.asked == [("quorum-chat-secret", 201)], self.cluster.api.asked
        assert people.voters(self.pods[0]) == sorted(pod.name for pod in self.set.all())
        self._no_restarts()
        # Otherwise the pods would have waited for each other.
        assert self.cluster.network.found_unready, "no pod was found by its name before it was ready"

    def pods_are_confined(self):
        for pod in self.set.all():
            with open(f"/proc/{pod.pid}/status", encoding="ascii") as file:
                process = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
            assert process["Uid"].split() == ["65532"] * 4 and process["Gid"].split() == ["65532"] * 4, process
            assert process["Groups"].split() == ["65532"], process["Groups"]
            for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(process[kind], 16) == 0, f"{pod.name}: {kind} {process[kind]}"
            assert process["NoNewPrivs"] == "1" and process["Seccomp"] == "2", process
            # The root is read-only. The volume is writable, and belongs to the group only because of fsGroup.
            root = f"/proc/{pod.pid}/root"
            assert os.statvfs(root).f_flag & os.ST_RDONLY, f"{pod.name}: the root can be written to"
            data = os.stat(f"{root}/data")
            assert (data.st_uid, data.st_gid, data.st_mode & 0o7777) == (0, 65532, 0o2775), data
            mounted = [name for at in ("secrets", "certs") for name in os.listdir(f"{root}/{at}")]
            visible = [name for name in mounted if not name.startswith("..")]
            assert visible == ["peer-secret"], visible
            # The settings of this pod agree with those of all pods. Only listeners without TLS may cause warnings.
            shown = pod.exec("chatd", "config").stdout
            assert f"CHAT_NAME={pod.name}\n" in shown, shown
            warnings = [line for line in pod.logs().splitlines() if '"level":"WARN"' in line and "CHAT_" in line]
            warnings = [line for line in warnings if ", without TLS: " not in line]
            assert not warnings, warnings

    def names_resolve(self):
        """Checks all forms of the names from inside a pod."""
        forms = ["", ".default", ".default.svc", ".default.svc.cluster.local", ".default.svc.cluster.local."]
        for form in forms:
            for name in ("quorum-chat", "quorum-chat-3.quorum-chat-peers"):
                chatctl(self.pods[0], "health", "--one", f"{name}{form}:50051")
        self._advertised_addresses_are_reachable()

    def prometheus_finds_the_metrics(self):
        """Checks discovery by annotations, as in the usual Prometheus configuration for Kubernetes."""
        for pod in self.set.all():
            notes = {key.removeprefix("prometheus.io/"): value for key, value in pod.spec.annotations.items()}
            assert notes["scrape"] == "true", notes
            with urllib.request.urlopen(f"http://{pod.address}:{notes['port']}{notes['path']}", timeout=5) as answer:
                assert "\nchat_raft_is_leader" in answer.read().decode(), pod.name

    def the_peer_port_is_closed(self):
        target, node = self.pods[0].address, self.pods[1].pid
        stranger = Workload(self.cluster, "stranger", self.image, clients=1)
        assert reaches(node, target, 50052), "the nodes do not reach each other"
        assert not reaches(stranger.pod.pid, target, 50052), "a stranger reaches the peer port"
        for port in (50051, 8080):
            assert reaches(stranger.pod.pid, target, port), f"port {port} is closed"
        assert not reaches(stranger.pod.pid, target, 9464), "a stranger reaches the metrics"
        web = self.cluster.network.services["quorum-chat"].address
        assert reaches(stranger.pod.pid, web, 8080), "the Service does not lead to the page"
        # A node does not need this port.
        assert not reaches(node, web, 8080), "a node reaches what it need not"
        stranger.judged()
        watcher = Workload(self.cluster, "watcher", self.image, clients=1, namespace="monitoring")
        assert reaches(watcher.pod.pid, target, 9464), "monitoring does not reach the metrics"
        assert not reaches(watcher.pod.pid, target, 50052), "monitoring reaches the peer port"
        watcher.judged()

    def somebody_chats_from_outside(self):
        """Follows the README through a port-forward."""
        person = Outsider(self.cluster, self.image)
        for name in ("alice", "bob"):
            person.chatctl("register", name, text="a password of theirs\n")
        person.chatctl("--user", "alice", "send", "bob", "hello")
        assert "hello" in person.chatctl("--user", "bob", "read", "alice")
        self.cluster.node.delete_claim("outsider")

    def rolling_update(self):
        """`kubectl rollout restart` under load."""
        load = Workload(self.cluster, "load-1", self.image)
        least = Least(self.cluster, self.set)
        restarted = {"kubectl.kubernetes.io/restartedAt": "now"}
        took = self.set.roll_out(lambda template: template.annotations.update(restarted))
        verdict = load.judged()
        assert [name for name, *_ in took] == [f"quorum-chat-{number}" for number in (4, 3, 2, 1, 0)], took
        for name, code, stop_seconds, _ in took:
            assert code == 0, f"{name} ended with {code}"
            assert stop_seconds < self.set.template.grace, f"{name} took {stop_seconds} s to stop"
        assert least.stop() >= 4, "more than one node was not ready"
        self._no_restarts()
        slowest = max(seconds for *_, seconds in took)
        return f"a pod in {slowest:.0f} s at most, {_summary(verdict)}"

    def a_bad_update_stands_still(self):
        """Rolls out a setting that no node accepts. The first pod does not come back, the update stops there, and the
        service stays available."""
        untouched = {number: self.pods[number].uid for number in range(4)}
        bad = ("CHAT_LOG_LEVEL", "value", "loud")
        try:
            # Longer than a healthy pod takes to become ready.
            self.set.roll_out(lambda template: template.container.env.append(bad), patience=10)
        except AssertionError:
            pass
        else:
            raise AssertionError("the update went on")

        def ended_twice():
            return self._ends("quorum-chat-4").count(64) >= 2

        self.cluster.node.wait_for(ended_twice, "quorum-chat-4 ending twice with 64", 60)
        assert {number: self.pods[number].uid for number in range(4)} == untouched
        assert people.leader(self.pods[0]) != "quorum-chat-4"
        # `kubectl rollout undo`.
        self.set.change(lambda template: template.container.env.remove(bad))
        self.set.replace(4)
        self.set.wait_ready()
        self._no_restarts()

    def drains_go_one_by_one(self):
        first, second = self.pods[0], self.pods[1]
        assert self.cluster.evict(first)
        assert not self.cluster.evict(second), "a second node was evicted while the first was not back"
        del self.pods[0]
        self.set.make(0)
        self.set.wait_ready()
        assert second in self.cluster.all_pods

    def pods_are_deleted_and_a_volume_is_lost(self):
        """Under load, deletes the leader gracefully, two pods at once without a grace period, and one with its
        volume."""
        load = Workload(self.cluster, "load-2", self.image)
        leads = int(people.leader(self.pods[0]).rsplit("-", 1)[1])
        self.set.replace(leads)
        self.set.wait_ready()
        self.set.replace(2, 3, grace=0)
        self.set.wait_ready()
        before = people.nodes(self.pods[0])["quorum-chat-4"]["node_id"]
        self.set.replace(4, keep_claims=False)
        self.set.wait_ready()
        after = people.nodes(self.pods[0])["quorum-chat-4"]["node_id"]
        assert after != before, "it came back under its old id, without what it had promised under it"
        self._wait_for_voters(5)
        verdict = load.judged()
        self._no_restarts()
        return _summary(verdict)

    def a_drill_finds_nothing(self):
        """Runs `chatctl drill kubectl` from outside through the Service. It deletes pods with and without a grace
        period."""
        kubectl = Kubectl(self.cluster)
        try:
            verdict = people.drill(self.cluster, self.image, kubectl)
        finally:
            kubectl.close()
        killed = [words for words in kubectl.called if "--force" in words]
        stopped = [words for words in kubectl.called if "delete" in words and "--force" not in words]
        assert len(killed) == 4 and len(stopped) == 5, kubectl.called
        self.set.wait_ready()
        self._no_restarts()
        return _summary(verdict)

    def two_more_join(self):
        """`kubectl scale --replicas=7` under load, and then another load through all seven."""
        load = Workload(self.cluster, "load-3", self.image)
        self.set.scale(7)
        self.set.wait_ready()
        self._wait_for_voters(7)
        self._no_restarts()
        return _summary(load.judged())

    def and_are_removed(self):
        """Removes the members first, and then runs `kubectl scale --replicas=5`. In between, the kubelet restarts the
        removed nodes."""
        load = Workload(self.cluster, "load-4", self.image)
        for number in (6, 5):
            name, pod = f"quorum-chat-{number}", self.pods[number]
            chatctl(self.pods[0], "members", "remove", name, "--socket", people.SOCKET)
            self.cluster.node.wait_for(lambda: self._ends(name).count(77) >= 2, f"{name} ending twice with 77", 90)
            assert pod.restarts >= 1 and set(self._ends(name)) == {77}, self.cluster.node.ends
            assert name not in people.nodes(self.pods[0]), f"{name} came back"
        self.set.scale(5)
        self._wait_for_voters(5)
        assert {"data-quorum-chat-5", "data-quorum-chat-6"} <= set(self.cluster.node.claims()), "a volume is gone"
        return _summary(load.judged())

    def a_removed_node_stays_out_until_its_volume_is_gone(self):
        self.cluster.node.ends.clear()
        self.set.scale(6)
        self.cluster.node.wait_for(lambda: 77 in self._ends("quorum-chat-5"), "the end of quorum-chat-5", 60)
        assert "quorum-chat-5" not in people.nodes(self.pods[0])
        self.set.replace(5, keep_claims=False)
        self.set.wait_ready()
        self._wait_for_voters(6)
        chatctl(self.pods[0], "members", "remove", "quorum-chat-5", "--socket", people.SOCKET)
        self.set.scale(5)
        self.cluster.node.delete_claim("data-quorum-chat-5")
        self.cluster.node.delete_claim("data-quorum-chat-6")

    def the_survivors_of_a_lost_majority_are_left_alone(self):
        survivors = [self.pods[0], self.pods[1]]
        self.set.lose(2, 3, 4)
        node = self.cluster.node
        node.wait_for(lambda: not any(pod.ready for pod in survivors), "the survivors not ready", 30)
        before = [pod.probed["liveness"][0] for pod in survivors]
        probe = self.set.template.container.liveness
        enough = probe.failures + 1
        node.wait_for(
            lambda: all(pod.probed["liveness"][0] >= count + enough for pod, count in zip(survivors, before)),
            f"{enough} more liveness probes that succeed",
            probe.period * (enough + 2),
        )
        assert all(pod.probed["liveness"][1] == 0 and pod.restarts == 0 for pod in survivors), self.set.states()
        service = self.cluster.network.services["quorum-chat"]
        assert self.cluster.network.endpoints(service) == [], "clients are sent to nodes that cannot serve them"
        for number in (2, 3, 4):
            self.set.make(number)
        self.set.wait_ready()
        self._no_restarts()

    def all_stop_and_get_a_secret(self):
        """Installs the operator's own secret. All nodes stop, the Secret is replaced, and all nodes start."""
        self.set.scale(0)
        assert len(self.cluster.node.claims()) == 5, self.cluster.node.claims()
        self._give_secret("the first secret of the peers")
        self.set.scale(5)
        self.set.wait_ready()
        # A pod that looks like a node, but does not have the secret.
        spec = read_pod(*self._without_the_secret())
        intruder = Pod(self.cluster.node, self.cluster.network, "quorum-chat-x", spec, subdomain="quorum-chat-peers")
        self.cluster.add(intruder)

        def is_refused():
            return intruder.container and "has not been admitted to a cluster yet" in intruder.logs()

        self.cluster.node.wait_for(is_refused, "a refusal", 60)
        assert sorted(people.nodes(self.pods[0])) == [f"quorum-chat-{number}" for number in range(5)]
        self.cluster.end(intruder)
        self._no_restarts()

    def all_get_certificates(self):
        """Applies the rest of the hardening. The certificates replace the secret."""
        self.set.scale(0)
        self.authority = Authority(self.cluster, self.image)
        self.cluster.node.secrets["quorum-chat-certs"] = self.authority.secret()
        self.cluster.node.config_maps["quorum-chat-security"] = {
            "CHAT_PEER_SECRET_FILE": "",
            "CHAT_TLS_CERT": "/certs/tls.crt",
            "CHAT_TLS_KEY": "/certs/tls.key",
            "CHAT_PEER_TLS_CERT": "/certs/tls.crt",
            "CHAT_PEER_TLS_KEY": "/certs/tls.key",
            "CHAT_PEER_TLS_CA": "/certs/ca.crt",
            "CHAT_TLS_CA": "/certs/ca.crt",
        }
        self.set.scale(5)
        self.set.wait_ready()
        # From here on chatctl in the pods uses TLS because CHAT_TLS_CA is set. A client without TLS gets no answer.
        self._advertised_addresses_are_reachable()
        person = Outsider(self.cluster, self.image)
        refused = run("docker", *person.words("status"), check=False)
        assert refused.returncode == 3, refused
        self._no_restarts()

    def certificates_are_renewed_under_running_pods(self):
        load = Workload(self.cluster, "load-5", self.image, tls=True)
        self.cluster.node.secrets["quorum-chat-certs"] = self.authority.secret()
        for pod in self.set.all():
            pod.update_secret("quorum-chat-certs")
        for pod in self.set.all():
            for whose in ("clients", "peers"):
                line = f"Reloaded the certificate of {whose} (CHAT_{'PEER_' if whose == 'peers' else ''}TLS_CERT)"
                self.cluster.node.wait_for(lambda: line in pod.logs(), f"{pod.name}: {line}", 30)
        # New connections use the new certificates.
        self.set.replace(4)
        self.set.wait_ready()
        self._no_restarts()
        return _summary(load.judged())

    def a_backup_becomes_a_new_cluster(self):
        """Runs docs/examples/kubernetes/backup.yaml, loses everything, and runs restore.yaml."""
        job = self.examples.find("CronJob", "quorum-chat-backup").at("spec").at("jobTemplate").at("spec").at("template")
        name = "quorum-chat-backup-29390400"
        spec = read_pod({"labels": {"job-name": name}}, job.at("spec"))
        backup = Pod(self.cluster.node, self.cluster.network, f"{name}-x7k2p", spec)
        self.cluster.add(backup)
        code = self.cluster.finished(backup)
        assert code == 0, backup.logs()
        before = people.status(self.pods[0])
        self.cluster.end(backup)
        self.set.scale(0)
        for number in range(5):
            self.cluster.node.delete_claim(f"data-quorum-chat-{number}")
        self._done("quorum-chat-restore")
        self._start_new_cluster(before)

    def one_volume_of_five_becomes_a_new_cluster(self):
        """Loses the quorum for good, and runs recover.yaml."""
        before = people.status(self.pods[4])
        self.set.scale(0)
        for number in range(4):
            self.cluster.node.delete_claim(f"data-quorum-chat-{number}")
        self._done("quorum-chat-recover")
        self._start_new_cluster(before)

    def _start_new_cluster(self, before):
        """Starts all nodes, of which one has the data of the cluster that had the status `before`."""
        self.set.scale(5)
        self.set.wait_ready()
        self._wait_for_voters(5)
        after = people.status(self.pods[0])
        assert after["cluster_id"] != before["cluster_id"], (before, after)
        assert after["revision"] > before["revision"] > 0, (before, after)
        self._advertised_addresses_are_reachable()
        self._no_restarts()

    def all_are_level(self):
        """After a last load, all nodes have the same state at the same revision."""
        verdict = Workload(self.cluster, "load-6", self.image, tls=True).judged()
        said = wait_until("equal digests", lambda: people.are_level(self.pods[0], 5), 120)
        return f"{_summary(verdict)}; digest {said['digest'][:16]} at revision {said['revision']}"

    # --- shared by the steps

    def _advertised_addresses_are_reachable(self):
        """The advertised addresses lead clients and browsers to the nodes."""
        for name, node in people.nodes(self.pods[0]).items():
            assert node["client_address"] == f"{name}.quorum-chat-peers.default.svc:50051", node
            assert node["web_address"] == f"{name}.quorum-chat-peers.default.svc:8080", node
            chatctl(self.pods[1], "health", "--one", node["client_address"])

    def _no_restarts(self):
        for pod in self.set.all():
            assert pod.restarts == 0, self.set.states()

    def _ends(self, name):
        return [code for pod, code, _ in self.cluster.node.ends if pod == name]

    def _wait_for_voters(self, count):
        wanted = [f"quorum-chat-{number}" for number in range(count)]
        wait_until(f"{count} voters", lambda: people.voters(self.pods[0]) == wanted, 90)

    def _give_secret(self, text):
        """Replaces the Secret with `kubectl create secret generic ... --from-literal=peer-secret=...`."""
        secret = text.replace(" ", "-").encode()
        self.cluster.node.secrets["quorum-chat-peer-secret"] = {"peer-secret": base64.b64encode(secret).decode()}

    def _without_the_secret(self):
        """A node like the others, but without the Secret."""
        labels = {"app.kubernetes.io/name": "quorum-chat"}
        pod = one_pod("quorum-chat-x", self.image, "/usr/local/bin/chatd", labels=labels)
        container = pod.value["spec"]["containers"][0]
        peers = "quorum-chat-0.quorum-chat-peers:50052,quorum-chat-1.quorum-chat-peers:50052"
        container["env"] = [
            {"name": "CHAT_NAME", "value": "quorum-chat-x"},
            {"name": "CHAT_JOIN", "value": peers},
            {"name": "CHAT_INSECURE_PEERS", "value": "1"},
            {"name": "CHAT_DATA_DIR", "value": "/data"},
        ]
        container["ports"] = [{"name": "peer", "containerPort": 50052}, {"name": "grpc", "containerPort": 50051}]
        container["ports"] += [{"name": "web", "containerPort": 8080}, {"name": "metrics", "containerPort": 9464}]
        # The pod must not become ready, so that no client is sent to it.
        container["readinessProbe"] = {"httpGet": {"path": "/readyz", "port": "metrics"}}
        return pod.value["metadata"], pod.at("spec")

    def _done(self, name):
        """Runs one of the example pods to its end."""
        pod = self.cluster.run(self.examples.find("Pod", name))
        code = self.cluster.finished(pod)
        assert code == 0, pod.logs()
        self.cluster.end(pod)


class Least:
    """The lowest number of ready pods of a set until `stop`. A pod that is being recreated counts as not ready."""

    def __init__(self, cluster, stateful_set):
        self.cluster, self.set = cluster, stateful_set
        self.least, self.done = len(stateful_set.pods), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self):
        while not self.done.is_set():
            self.least = min(self.least, sum(pod.ready for pod in list(self.set.pods.values())))
            with self.cluster.node.changed:
                self.cluster.node.changed.wait(0.05)

    def stop(self):
        self.done.set()
        self.thread.join()
        return self.least


def _summary(verdict):
    return f"{verdict['acknowledged']} messages acknowledged, longest outage {verdict['longest_outage_ms']} ms"
