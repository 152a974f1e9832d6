"""The StatefulSet controller, and the other operations that create and delete pods (jobs, evictions, `kubectl delete`).

Calls return when their operation is complete, so that a test reads from top to bottom.
"""

import copy
import threading
import time

from .api import Api
from .fields import ManifestError
from .made import remove_all
from .network import NODE, Network
from .pod import Node, Pod
from .spec import Volume, read_pod, selects

# Time limit for a pod to become ready or to be gone. It is generous because the machine may be busy.
PATIENCE_S = 120


def _give_token(spec, accounts, path):
    """Whether a pod gets a token of its account. The pod's own setting overrides that of the account."""
    account = accounts.get(spec.service_account)
    if account is None:
        raise ManifestError(f"{path}: no such ServiceAccount")
    mounts = account.get("automountServiceAccountToken", True)
    if spec.token is None:
        spec.token = mounts


class Cluster:
    """A machine with a network, and the objects that were applied to it."""

    def __init__(self):
        self.node = Node()
        self.all_pods = []
        self.network = Network(lambda: list(self.all_pods))
        self.set = None
        self.api = None
        self.budgets = []

    def apply(self, manifests, patience=PATIENCE_S):
        """`kubectl apply` of all manifests, with the StatefulSet last."""
        for config in manifests.of_kind("ConfigMap"):
            self.node.config_maps[config.value["metadata"]["name"]] = config.need("data")
        for secret in manifests.of_kind("Secret"):
            secret.get("type")
            self.node.secrets[secret.value["metadata"]["name"]] = secret.need("data")
        accounts = {account.value["metadata"]["name"]: account for account in manifests.of_kind("ServiceAccount")}
        self.network.start(manifests.of_kind("Service"), manifests.of_kind("NetworkPolicy"))
        for budget in manifests.of_kind("PodDisruptionBudget"):
            spec = budget.at("spec")
            self.budgets.append((spec.at("selector").get("matchLabels"), spec.need("minAvailable")))
        (job,) = manifests.of_kind("Job")
        image = job.value["spec"]["template"]["spec"]["containers"][0]["image"]
        self.api = self.node.api = Api(self.node, str(NODE), image)
        self.api.bind(manifests)
        self._do(job, accounts)
        (fields,) = manifests.of_kind("StatefulSet")
        self.set = StatefulSet(self, fields)
        _give_token(self.set.template, accounts, fields.path)
        self.set.scale(self.set.replicas, patience)

    def _do(self, job, accounts):
        """Runs a Job to its end. In a real cluster the pods would wait for its result. Here they start later, which
        avoids their backoff."""
        template = job.at("spec").at("template")
        labels = template.at("metadata").get("labels")
        name = f"{job.value['metadata']['name']}-x"
        spec = read_pod({"labels": labels}, template.at("spec"))
        _give_token(spec, accounts, job.path)
        pod = Pod(self.node, self.network, name, spec)
        self.add(pod)
        self.node.wait_for(lambda: pod.exit_code == 0, f"the end of {name}: {pod.waiting}", PATIENCE_S)
        self.end(pod)

    def add(self, pod):
        self.all_pods.append(pod)
        pod.start()

    def end(self, *pods, grace=None):
        """`kubectl delete pod` of several pods at once."""
        threads = [threading.Thread(target=pod.delete, args=(grace,)) for pod in pods]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for pod in pods:
            self.all_pods.remove(pod)

    def run(self, fields, namespace="default"):
        """Runs a standalone pod. Volumes that it claims are created if they do not exist."""
        spec = fields.at("spec")
        metadata = fields.value["metadata"]
        pod = Pod(self.node, self.network, metadata["name"], read_pod(metadata, spec), namespace)
        self.add(pod)
        return pod

    def finished(self, pod, seconds=PATIENCE_S):
        """Waits for the end of a pod that is not restarted, and returns its exit code."""
        self.node.wait_for(lambda: pod.exit_code is not None or pod.waiting, f"the end of {pod.name}", seconds)
        if pod.waiting:
            raise AssertionError(f"{pod.name}: {pod.waiting}")
        return pod.exit_code

    def evict(self, pod):
        """Evicts a pod if the disruption budgets allow it, as a drain of a machine does. Returns whether they did."""
        for labels, least in self.budgets:
            if selects(labels, pod.spec.labels):
                healthy = [p for p in self.all_pods if selects(labels, p.spec.labels) and p.ready]
                if len(healthy) - pod.ready < least:
                    return False
        self.end(pod)
        return True

    def close(self):
        pods = list(self.all_pods)
        self.end(*pods, grace=0)
        self.network.stop()
        if self.api is not None:
            self.api.close()
        self.node.close()
        remove_all()


class StatefulSet:
    def __init__(self, cluster, fields):
        self.cluster = cluster
        spec = fields.at("spec")
        self.name = fields.value["metadata"]["name"]
        self.replicas = spec.get("replicas", 1)
        self.service = spec.need("serviceName")
        self.parallel = spec.get("podManagementPolicy", "OrderedReady") == "Parallel"
        self.min_ready = spec.get("minReadySeconds", 0)
        strategy = spec.at("updateStrategy").get("type", "RollingUpdate")
        if strategy != "RollingUpdate":
            raise ManifestError(f"{spec.path}.updateStrategy {strategy!r} is not known here")
        retention = spec.at("persistentVolumeClaimRetentionPolicy")
        self.keep_when_scaled = retention.get("whenScaled", "Retain") == "Retain"
        # No operation here deletes the set.
        retention.get("whenDeleted")
        template = spec.at("template")
        metadata = template.at("metadata")
        named = {"labels": metadata.get("labels"), "annotations": metadata.get("annotations", {})}
        self.template = read_pod(named, template.at("spec"))
        if not selects(spec.at("selector").get("matchLabels"), self.template.labels):
            raise ManifestError(f"{fields.path}: the selector does not fit the template")
        self.claims = []
        for claim in spec.each("volumeClaimTemplates"):
            self.claims.append(claim.at("metadata").need("name"))
            below = claim.at("spec")
            if below.need("accessModes") != ["ReadWriteOnce"]:
                raise ManifestError(f"{below.path}.accessModes: only ReadWriteOnce is known here")
        self.revision = 1
        self.pods = {}

    def all(self):
        return [self.pods[number] for number in sorted(self.pods)]

    def scale(self, replicas, patience=PATIENCE_S):
        """`kubectl scale --replicas`. Creates or deletes the pods with the highest numbers."""
        going = [self.pods.pop(number) for number in sorted(self.pods, reverse=True) if number >= replicas]
        if self.parallel:
            self.cluster.end(*going)
        else:
            for pod in going:
                self.cluster.end(pod)
        if not self.keep_when_scaled:
            for pod in going:
                for claim in self.claims:
                    self.cluster.node.delete_claim(f"{claim}-{pod.name}")
        for number in range(replicas):
            if number not in self.pods:
                self.make(number)
                if not self.parallel:
                    self.wait_ready(number, patience=patience)

    def make(self, number):
        name = f"{self.name}-{number}"
        spec = copy.copy(self.template)
        spec.labels = {
            **spec.labels,
            "statefulset.kubernetes.io/pod-name": name,
            "apps.kubernetes.io/pod-index": str(number),
        }
        claims = [Volume(claim, claim=f"{claim}-{name}") for claim in self.claims]
        spec.volumes = [*spec.volumes, *claims]
        node, network = self.cluster.node, self.cluster.network
        pod = Pod(node, network, name, spec, subdomain=self.service, revision=self.revision)
        self.pods[number] = pod
        self.cluster.add(pod)
        return pod

    def replace(self, *numbers, grace=None, keep_claims=True):
        """`kubectl delete pod`. The controller recreates the pods. Without `keep_claims`, their volumes are deleted as
        well."""
        self.lose(*numbers, grace=grace)
        for number in numbers:
            if not keep_claims:
                for claim in self.claims:
                    self.cluster.node.delete_claim(f"{claim}-{self.name}-{number}")
            self.make(number)

    def lose(self, *numbers, grace=0):
        """Loses the machines of these pods. The pods are not recreated until `make`."""
        self.cluster.end(*(self.pods.pop(number) for number in numbers), grace=grace)

    def change(self, change):
        """Changes the template for pods that are created from now on."""
        self.template = copy.deepcopy(self.template)
        change(self.template)
        self.revision += 1

    def roll_out(self, change, patience=PATIENCE_S):
        """A rolling update. Applies `change` to the template and recreates one pod after the other, the highest number
        first. The next pod has to wait until all are available, that is ready for `minReadySeconds`."""
        self.change(change)
        took = []
        for number in sorted(self.pods, reverse=True):
            began = time.monotonic()
            old = self.pods[number]
            self.replace(number)
            self.wait_ready(number, patience=patience)
            self.cluster.node.wait_for(
                lambda: all(pod.available(self.min_ready) for pod in self.all()),
                f"{self.name} available after the update of number {number}: {self.states()}",
                PATIENCE_S + self.min_ready,
            )
            took.append((old.name, old.exit_code, old.stop_seconds, time.monotonic() - began))
        return took

    def wait_ready(self, *numbers, patience=PATIENCE_S):
        numbers = numbers or sorted(self.pods)
        try:
            self.cluster.node.wait_for(
                lambda: all(self.pods[number].ready for number in numbers), f"{self.name} {numbers} ready", patience
            )
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.states()}") from None

    def states(self):
        return ", ".join(
            f"{pod.name}: {'ready' if pod.ready else pod.waiting or 'not ready'}, {pod.restarts} restarts"
            for pod in self.all()
        )
