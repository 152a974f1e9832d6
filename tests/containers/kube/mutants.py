"""Executes broken manifests. Each has to fail in the expected way, which shows that `scenario` detects such errors."""

import copy
import time

from .fields import Manifests
from .left_out import LEFT_OUT
from .people import Workload, reaches
from .statefulset import Cluster

# Time limit for an expected observation.
PATIENCE_S = 60
# Log line of the first node while it cannot found the cluster. It is repeated every few seconds.
NOT_BOOTSTRAPPED = "The cluster cannot be bootstrapped yet"


def check(documents, image):
    for name, (breaks, fails) in BROKEN.items():
        began = time.monotonic()
        broken = Manifests([])
        for document in copy.deepcopy(documents):
            broken.add(document)
        parts = {f"{d.value['kind']}/{d.value['metadata']['name']}": d.value for d in broken.documents}
        breaks(parts)
        cluster = Cluster()
        try:
            fails(cluster, broken, image)
        finally:
            cluster.close()
        print(f"broken and seen: {name}: {time.monotonic() - began:.0f} s")


def _pod(parts):
    return parts["StatefulSet/quorum-chat"]["spec"]["template"]["spec"]


def _never_founded(cluster, manifests, image):
    """The nodes stay alive and keep retrying, and none becomes ready."""
    try:
        # With OrderedReady this waits for the first pod, several times longer than all five pods normally take.
        cluster.apply(manifests, patience=15)
    except AssertionError:
        pass
    first = cluster.set.pods[0]

    def has_tried():
        return first.container and first.logs().count(NOT_BOOTSTRAPPED) >= 3

    cluster.node.wait_for(has_tried, "three attempts", PATIENCE_S)
    assert not any(pod.ready for pod in cluster.all_pods), "it became ready all the same"


def _ends_with(code):
    def fails(cluster, manifests, image):
        cluster.apply(manifests)

        def has_ended():
            return code in [end for _, end, _ in cluster.node.ends]

        cluster.node.wait_for(has_ended, f"an end with {code}", PATIENCE_S)

    return fails


def _late_pod_ends(cluster, manifests, image):
    cluster.apply(manifests)
    cluster.set.wait_ready()
    cluster.set.scale(6)
    end = ("quorum-chat-5", 64, False)
    cluster.node.wait_for(lambda: end in cluster.node.ends, "the end of quorum-chat-5", PATIENCE_S)


def _survivors_are_restarted(cluster, manifests, image):
    cluster.apply(manifests)
    cluster.set.wait_ready()
    cluster.set.lose(2, 3, 4)
    probe = cluster.set.template.container.liveness
    patience = probe.period * (probe.failures + 2) + cluster.set.template.grace
    cluster.node.wait_for(lambda: any(pod.restarts for pod in cluster.set.all()), "a restart", patience)


def _stranger_gets_in(cluster, manifests, image):
    cluster.apply(manifests)
    cluster.set.wait_ready()
    stranger = Workload(cluster, "stranger", image, clients=1)
    assert reaches(stranger.pod.pid, cluster.set.pods[0].address, 50052), "the peer port is closed"


def _stranger_reads_metrics(cluster, manifests, image):
    cluster.apply(manifests)
    cluster.set.wait_ready()
    stranger = Workload(cluster, "stranger", image, clients=1)
    assert reaches(stranger.pod.pid, cluster.set.pods[0].address, 9464), "the metrics are closed"


def _node_gets_out(cluster, manifests, image):
    cluster.apply(manifests)
    cluster.set.wait_ready()
    web = cluster.network.services["quorum-chat"].address
    assert reaches(cluster.set.pods[0].pid, web, 8080), "a node does not get out"


def _field_is_missed(cluster, manifests, image):
    cluster.apply(manifests)
    missed = manifests.unused(LEFT_OUT)
    assert missed == ["StatefulSet/quorum-chat.spec.template.spec.hostPID"], missed


def _open(parts):
    parts["NetworkPolicy/quorum-chat"]["spec"]["ingress"][0]["from"].append({"namespaceSelector": {}})


def _no_group(parts):
    pod = _pod(parts)
    del pod["securityContext"]["fsGroup"]
    # Without world-readable secrets, the node would exit before it opens its volume.
    for volume in pod["volumes"]:
        volume["secret"]["defaultMode"] = 0o444


def _rules(parts, way):
    return parts["NetworkPolicy/quorum-chat"]["spec"][way]


ANYWHERE = {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"protocol": "TCP", "port": 8080}]}

BROKEN = {
    "peers do not resolve before they are ready": (
        lambda parts: parts["Service/quorum-chat-peers"]["spec"].update(publishNotReadyAddresses=False),
        _never_founded,
    ),
    "OrderedReady": (
        lambda parts: parts["StatefulSet/quorum-chat"]["spec"].update(podManagementPolicy="OrderedReady"),
        _never_founded,
    ),
    "no fsGroup": (_no_group, _ends_with(73)),
    "no fsGroup, and the secret is root's": (
        lambda parts: _pod(parts)["securityContext"].pop("fsGroup"),
        _ends_with(64),
    ),
    "no CHAT_JOIN": (lambda parts: parts["ConfigMap/quorum-chat"]["data"].pop("CHAT_JOIN"), _late_pod_ends),
    "liveness asks for a quorum": (
        lambda parts: _pod(parts)["containers"][0]["livenessProbe"]["httpGet"].update(path="/readyz"),
        _survivors_are_restarted,
    ),
    "a field that is not known here": (lambda parts: _pod(parts).update(hostPID=True), _field_is_missed),
    "the peer port is open": (_open, _stranger_gets_in),
    "the metrics are open": (
        lambda parts: _rules(parts, "ingress")[2].update({"from": [{"namespaceSelector": {}}]}),
        _stranger_reads_metrics,
    ),
    "nodes get out everywhere": (lambda parts: _rules(parts, "egress").append(ANYWHERE), _node_gets_out),
    "nodes do not reach the DNS": (lambda parts: _rules(parts, "egress").pop(1), _never_founded),
}
