"""Checks for common mistakes in running a replicated store on Kubernetes.

A check gets the manifests as plain data and returns an error message, or nothing. Each check is registered with a
change that must make it fail, because a check that cannot fail is useless.
"""

import copy
import re

KINDS = {
    "v1": {"Service", "ConfigMap", "ServiceAccount"},
    "apps/v1": {"StatefulSet"},
    "policy/v1": {"PodDisruptionBudget"},
    "networking.k8s.io/v1": {"NetworkPolicy"},
    "batch/v1": {"Job"},
    "rbac.authorization.k8s.io/v1": {"Role", "RoleBinding"},
}
# Time that a drain needs beyond CHAT_DRAIN_TIMEOUT_MS to transfer leadership and close the files.
GRACE_BEYOND_DRAIN_S = 10
# Time to check and fetch 50 GiB at 100 MiB/s.
STARTUP_S = 512


class Parts:
    """The documents, by their purpose."""

    def __init__(self, documents):
        self.documents = documents
        self.set = self._one("StatefulSet")
        self.spec = self.set["spec"]
        self.pod = self.spec["template"]["spec"]
        (self.container,) = self.pod["containers"]
        self.labels = self.spec["template"]["metadata"]["labels"]
        self.peers = self._one("Service", self.spec["serviceName"])["spec"]
        self.clients = self._one("Service", self.set["metadata"]["name"])["spec"]
        self.settings = self._one("ConfigMap", self.set["metadata"]["name"])["data"]
        self.budget = self._one("PodDisruptionBudget")["spec"]
        self.policy = self._one("NetworkPolicy")["spec"]
        self.account = self._one("ServiceAccount", self.set["metadata"]["name"])
        self.job = self._one("Job")["spec"]["template"]
        self.role = self._one("Role")
        self.binding = self._one("RoleBinding")
        self.ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        self.env = {variable["name"]: variable for variable in self.container["env"]}

    def _one(self, kind, name=None):
        found = [d for d in self.documents if d["kind"] == kind and name in (None, d["metadata"]["name"])]
        if len(found) != 1:
            raise AssertionError(f"{len(found)} of {kind} {name or ''}, expected one")
        return found[0]


CHECKS = []


def lint(breaks):
    """Registers a check. `breaks` changes valid manifests so that the check must fail."""

    def register(check):
        CHECKS.append((check.__name__.replace("_", " "), check, breaks))
        return check

    return register


def _set(path, value):
    """A change that sets the value at a path of a `Parts` attribute and keys below it. `None` removes the value."""

    def change(parts):
        names = path.split("/")
        at = getattr(parts, names[0])
        for name in names[1:-1]:
            at = at[int(name)] if name.isdigit() else at[name]
        if value is None:
            del at[names[-1]]
        else:
            at[names[-1]] = value

    return change


@lint(_set("spec/podManagementPolicy", "OrderedReady"))
def pod_0_does_not_wait_for_a_quorum_alone(p):
    return p.spec.get("podManagementPolicy") != "Parallel" and "podManagementPolicy is not Parallel"


@lint(_set("peers/publishNotReadyAddresses", False))
def peers_resolve_before_they_are_ready(p):
    if p.peers.get("clusterIP") != "None" or p.peers.get("publishNotReadyAddresses") is not True:
        return "the peers' Service is not headless, or hides who is not ready"
    return p.peers["selector"] != p.labels and "the peers' Service selects others"


@lint(_set("clients/publishNotReadyAddresses", True))
def clients_meet_only_who_is_ready(p):
    if p.clients.get("clusterIP") == "None" or p.clients.get("publishNotReadyAddresses"):
        return "the clients' Service is headless, or has who is not ready"
    return p.clients["selector"] != p.labels and "the clients' Service selects others"


@lint(_set("clients/ports/0/targetPort", "peer"))
def no_service_for_clients_leads_to_the_peer_port(p):
    targets = [port["targetPort"] for port in p.clients["ports"]]
    return any(p.ports.get(target, target) == p.ports["peer"] for target in targets) and "it does"


@lint(_set("container/livenessProbe/httpGet/path", "/readyz"))
def liveness_asks_for_no_quorum(p):
    path = p.container["livenessProbe"]["httpGet"]["path"]
    return path != "/livez" and "survivors of a lost majority would be restarted"


@lint(_set("container/startupProbe/httpGet/path", "/readyz"))
def the_start_asks_for_no_quorum(p):
    path = p.container["startupProbe"]["httpGet"]["path"]
    return path != "/livez" and "nodes that wait for the others would be restarted"


@lint(_set("container/startupProbe/failureThreshold", 12))
def a_start_may_take_as_long_as_a_snapshot_does(p):
    probe = p.container["startupProbe"]
    return probe["periodSeconds"] * probe["failureThreshold"] < STARTUP_S and f"less than {STARTUP_S} s"


@lint(_set("container/readinessProbe/httpGet/path", "/livez"))
def readiness_means_that_it_can_serve(p):
    return p.container["readinessProbe"]["httpGet"]["path"] != "/readyz" and "not /readyz"


@lint(_set("container/readinessProbe/failureThreshold", 1))
def an_election_does_not_empty_the_service(p):
    probe = p.container["readinessProbe"]
    return probe["periodSeconds"] * (probe["failureThreshold"] - 1) < 3 and "unready in less than 3 s"


@lint(_set("ports/metrics", 9465))
def probes_and_annotations_name_the_port_of_the_metrics(p):
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        if p.ports.get(p.container[kind]["httpGet"]["port"]) != 9464:
            return f"{kind} does not ask port 9464"
    notes = p.spec["template"]["metadata"]["annotations"]
    wanted = {"prometheus.io/scrape": "true", "prometheus.io/port": "9464", "prometheus.io/path": "/metrics"}
    return not wanted.items() <= notes.items() and "the annotations for Prometheus are others"


@lint(_set("budget/minAvailable", "80%"))
def drains_take_one_node_at_a_time(p):
    least, replicas = p.budget.get("minAvailable"), p.spec["replicas"]
    if not isinstance(least, int) or p.budget["selector"]["matchLabels"] != p.labels:
        return "minAvailable is no number, or of other pods"
    return (least != replicas - 1 or least <= replicas // 2 + 1) and f"{least} of {replicas} is not one at a time"


@lint(_set("pod/topologySpreadConstraints/0/whenUnsatisfiable", "DoNotSchedule"))
def it_also_runs_on_one_machine(p):
    if any(c["whenUnsatisfiable"] != "ScheduleAnyway" for c in p.pod["topologySpreadConstraints"]):
        return "a topology is required"
    kinds = set(p.pod["affinity"]) - {"podAntiAffinity"} | set(p.pod["affinity"]["podAntiAffinity"])
    return kinds != {"preferredDuringSchedulingIgnoredDuringExecution"} and "an affinity is required"


@lint(_set("pod/affinity", {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}))
def it_is_spread_over_machines(p):
    terms = p.pod["affinity"]["podAntiAffinity"].get("preferredDuringSchedulingIgnoredDuringExecution", [])
    terms = [term["podAffinityTerm"] for term in terms]
    keys = {term["topologyKey"] for term in terms if term["labelSelector"]["matchLabels"] == p.labels}
    return "kubernetes.io/hostname" not in keys and "not over machines"


@lint(_set("pod/terminationGracePeriodSeconds", 10))
def a_stop_has_time_to_drain(p):
    drain_s = int(p.settings["CHAT_DRAIN_TIMEOUT_MS"]) / 1000
    return p.pod["terminationGracePeriodSeconds"] < drain_s + GRACE_BEYOND_DRAIN_S and "killed before it was drained"


@lint(_set("spec/minReadySeconds", 0))
def an_update_waits_for_who_is_level(p):
    return p.spec.get("minReadySeconds", 0) < 5 and "minReadySeconds is less than 5"


@lint(_set("spec/updateStrategy/type", "OnDelete"))
def an_update_goes_by_itself(p):
    return p.spec["updateStrategy"] != {"type": "RollingUpdate"} and "updateStrategy is another"


@lint(_set("container/lifecycle", {"preStop": {"exec": {"command": ["chatctl", "members", "remove", "$(POD_NAME)"]}}}))
def no_hook_changes_the_members_at_each_restart(p):
    return "lifecycle" in p.container and "there is a hook"


_MONITOR = {"apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor", "metadata": {"name": "x"}}


@lint(lambda p: p.documents.append(dict(_MONITOR)))
def a_bare_cluster_takes_it(p):
    for document in p.documents:
        if document["kind"] not in KINDS.get(document["apiVersion"], ()):
            return f"{document['apiVersion']} {document['kind']}"
    return any("namespace" in document["metadata"] for document in p.documents) and "a namespace is given"


@lint(_set("pod/volumes/1/secret/optional", False))
def it_starts_without_certificates(p):
    (certs,) = (volume for volume in p.pod["volumes"] if volume["name"] == "certs")
    if certs["secret"].get("optional") is not True:
        return "the certificates are not optional"
    peers = ("CHAT_PEER_SECRET", "CHAT_INSECURE_PEERS")
    named = [name for name in [*p.settings, *p.env] if "TLS" in name or name in peers]
    return named and f"{named} would have to be there, or makes the peer port open"


@lint(_set("pod/volumes/0/secret/optional", True))
def it_waits_for_the_secret_that_the_job_makes(p):
    (volume,) = (volume for volume in p.pod["volumes"] if volume["name"] == "peer-secret")
    (mount,) = (mount for mount in p.container["volumeMounts"] if mount["name"] == "peer-secret")
    if volume["secret"].get("optional", False):
        return "the pods start without the secret, and fail"
    (container,) = p.job["spec"]["containers"]
    if container["args"] != ["secret", "--kubernetes", volume["secret"]["secretName"]]:
        return "the Job makes another Secret"
    return p.settings.get("CHAT_PEER_SECRET_FILE") != f"{mount['mountPath']}/peer-secret" and "the secret is not used"


@lint(_set("role/rules/0/verbs", ["create", "get"]))
def the_job_may_create_secrets_and_nothing_else(p):
    account = p.job["spec"]["serviceAccountName"]
    bound = [subject["name"] for subject in p.binding["subjects"]]
    role = p.binding["roleRef"]["name"]
    if account == p.pod["serviceAccountName"] or bound != [account] or role != p.role["metadata"]["name"]:
        return "somebody else may, or it may not"
    rights = [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]}]
    return p.role["rules"] != rights and f"{p.role['rules']}"


@lint(_set("job/metadata/labels", {"app.kubernetes.io/name": "quorum-chat"}))
def the_policy_of_the_nodes_is_not_for_the_job(p):
    return p.job["metadata"]["labels"].get("app.kubernetes.io/name") == p.labels["app.kubernetes.io/name"] and "it is"


@lint(_set("container/envFrom/1/configMapRef/optional", False))
def the_names_of_the_secrets_files_are_optional_too(p):
    optional = [source["configMapRef"].get("optional", False) for source in p.container["envFrom"]]
    return optional != [False, True] and f"optional: {optional}"


@lint(_set("policy/ingress/0/from", [{"namespaceSelector": {}}]))
def the_peer_port_is_closed_to_others(p):
    if p.policy["podSelector"]["matchLabels"] != p.labels or "Ingress" not in p.policy["policyTypes"]:
        return "the policy is not of the nodes"
    for rule in p.policy["ingress"]:
        peers = [{"podSelector": {"matchLabels": p.labels}}]
        ports = [p.ports.get(port["port"], port["port"]) for port in rule.get("ports", [])]
        if (not ports or p.ports["peer"] in ports) and rule.get("from") != peers:
            return "somebody else reaches it"
    return None


@lint(_set("policy/ingress/1/ports", [{"protocol": "TCP", "port": "grpc"}]))
def clients_browsers_and_prometheus_are_let_in(p):
    open_to = {port["port"] for rule in p.policy["ingress"] for port in rule["ports"] if rule.get("from") != []}
    return not {"grpc", "web", "metrics"} <= open_to and f"only {sorted(open_to)}"


@lint(_set("policy/ingress/2/from", [{"namespaceSelector": {}}]))
def metrics_are_for_monitoring(p):
    metrics = [rule for rule in p.policy["ingress"] if "metrics" in {port["port"] for port in rule["ports"]}]
    wanted = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    return any(rule.get("from") != wanted for rule in metrics) and "not only for the namespace `monitoring`"


@lint(_set("policy/policyTypes", ["Ingress"]))
def nodes_reach_nothing_but_each_other_dns_and_the_collector(p):
    if "Egress" not in p.policy["policyTypes"]:
        return "there is no rule for what goes out"
    for rule in p.policy["egress"]:
        if not rule.get("to") or {} in [peer.get("namespaceSelector") for peer in rule["to"]]:
            return "a rule leads everywhere"
    ports = {port["port"] for rule in p.policy["egress"] for port in rule["ports"]}
    return ports != {p.ports["peer"], p.ports["grpc"], 53, 4317} and f"to {ports}"


@lint(_set("pod/securityContext/runAsUser", 0))
def the_user_is_not_root(p):
    wanted = {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532}
    return not wanted.items() <= p.pod["securityContext"].items() and f"not {wanted}"


@lint(_set("pod/securityContext/seccompProfile", {"type": "Unconfined"}))
def system_calls_are_filtered(p):
    return p.pod["securityContext"].get("seccompProfile") != {"type": "RuntimeDefault"} and "not RuntimeDefault"


@lint(_set("container/securityContext/capabilities/drop", []))
def the_container_may_do_little(p):
    wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    return p.container["securityContext"] != wanted and f"not {wanted}"


@lint(_set("pod/automountServiceAccountToken", True))
def no_token_is_in_the_pod(p):
    if p.pod["serviceAccountName"] != p.account["metadata"]["name"]:
        return "another account"
    mounts = [by.get("automountServiceAccountToken") for by in (p.pod, p.account)]
    return mounts != [False, False] and "it is"


@lint(_set("pod/enableServiceLinks", True))
def services_add_no_settings(p):
    return p.pod.get("enableServiceLinks") is not False and "enableServiceLinks"


@lint(_set("env/CHAT_PEER_ADVERTISE/value", "$(POD_IP):50052"))
def nodes_are_found_by_names_that_stay(p):
    host = f"$(POD_NAME).{p.spec['serviceName']}"
    wanted = {
        "CHAT_NAME": "$(POD_NAME)",
        "CHAT_PEER_ADVERTISE": f"{host}:50052",
        "CHAT_ADVERTISE": f"{host}.$(POD_NAMESPACE).svc:50051",
        "CHAT_WEB_ADVERTISE": f"{host}.$(POD_NAMESPACE).svc:8080",
    }
    given = {name: p.env[name].get("value") for name in wanted}
    return given != wanted and f"{given}"


@lint(_set("settings/CHAT_INITIAL_NODES", "quorum-chat-0=quorum-chat-0.quorum-chat-peers:50052"))
def the_first_five_know_each_other(p):
    name, service = p.set["metadata"]["name"], p.spec["serviceName"]
    wanted = [f"{name}-{number}={name}-{number}.{service}:50052" for number in range(p.spec["replicas"])]
    given = [item.strip() for item in p.settings["CHAT_INITIAL_NODES"].split(",")]
    return given != wanted and f"CHAT_INITIAL_NODES is {given}"


@lint(_set("settings/CHAT_JOIN", None))
def pods_that_come_later_join_by_themselves(p):
    first = [item.strip().split("=")[1] for item in p.settings["CHAT_INITIAL_NODES"].split(",")]
    given = [item.strip() for item in p.settings.get("CHAT_JOIN", "").split(",")]
    return (len(given) < 2 or not set(given) <= set(first)) and f"CHAT_JOIN is {given}"


@lint(_set("spec/persistentVolumeClaimRetentionPolicy/whenScaled", "Delete"))
def volumes_outlive_scaling(p):
    if p.spec.get("persistentVolumeClaimRetentionPolicy", {}) != {"whenDeleted": "Retain", "whenScaled": "Retain"}:
        return "they do not"
    (claim,) = p.spec["volumeClaimTemplates"]
    mounts = [mount for mount in p.container["volumeMounts"] if mount["name"] == claim["metadata"]["name"]]
    paths = [mount["mountPath"] for mount in mounts]
    return paths != [p.env["CHAT_DATA_DIR"]["value"]] and "the data directory is not on the volume"


@lint(_set("container/resources/limits", {"memory": "1Gi", "cpu": "1"}))
def a_busy_node_is_not_throttled(p):
    return set(p.container["resources"]["limits"]) != {"memory"} and "limits must be of memory, and of nothing else"


@lint(_set("container/resources/requests", {"cpu": "250m"}))
def the_scheduler_knows_what_a_node_takes(p):
    return set(p.container["resources"]["requests"]) != {"memory", "cpu"} and "requests must be of memory and CPU"


@lint(_set("container/imagePullPolicy", "Always"))
def an_image_that_was_loaded_is_enough(p):
    if p.container.get("imagePullPolicy") != "IfNotPresent":
        return "imagePullPolicy"
    image = p.container["image"]
    return not re.fullmatch(r"quorum-chat:\d+\.\d+\.\d+", image) and f"{image} names no version"


def problems(documents):
    """The failed checks, by their names."""
    found = [(name, check(Parts(documents))) for name, check, _ in CHECKS]
    return [f"{name}: {complaint}" for name, complaint in found if complaint]


def blind_checks(documents):
    """The checks that do not detect the mistake that they are meant to detect."""
    blind = []
    for name, check, breaks in CHECKS:
        parts = Parts(copy.deepcopy(documents))
        breaks(parts)
        if not check(parts):
            blind.append(name)
    return blind
