"""Pod specifications, read once from a manifest. Every field is used or refused."""

import re
from dataclasses import dataclass

from .fields import ManifestError


@dataclass
class Probe:
    """An httpGet probe, as the kubelet performs it."""

    path: str
    port: int
    initial_delay: float
    period: float
    timeout: float
    failures: int
    successes: int


@dataclass
class Mount:
    volume: str
    path: str
    read_only: bool


@dataclass
class Volume:
    """A volume that has either a `claim` (a PersistentVolumeClaim's name) or a `secret`."""

    name: str
    claim: str = ""
    claim_read_only: bool = False
    secret: str = ""
    optional: bool = False
    mode: int = 0o644


@dataclass
class Container:
    name: str
    image: str
    command: list
    args: list
    env: list
    env_from: list
    ports: dict
    startup: Probe | None
    liveness: Probe | None
    readiness: Probe | None
    user: int | None
    read_only_root: bool
    escalation: bool
    drop: list
    memory_limit: int | None
    cpu_shares: int | None
    mounts: list


@dataclass
class PodSpec:
    labels: dict
    annotations: dict
    container: Container
    volumes: list
    grace: int
    restart: str
    group: int | None
    fs_group: int | None
    non_root: bool
    service_links: bool
    service_account: str = ""
    # Whether the token of the account is mounted. Pods that do not request it do not use the API.
    token: bool = False


def read_pod(metadata, spec):
    """The pod that the `metadata` and `spec` of a Pod or a template describe."""
    security = spec.at("securityContext")
    seccomp = security.at("seccompProfile").get("type")
    if seccomp != "RuntimeDefault":
        raise ManifestError(
            f"{spec.path}: seccompProfile is {seccomp!r}; Docker's default profile is what can be given here"
        )
    containers = spec.each("containers")
    if len(containers) != 1:
        raise ManifestError(f"{spec.path}: one container is expected")
    return PodSpec(
        labels=dict(metadata.get("labels", {})),
        annotations=dict(metadata.get("annotations", {})),
        container=_container(containers[0], security.get("runAsUser")),
        volumes=[_volume(volume) for volume in spec.each("volumes")],
        grace=spec.get("terminationGracePeriodSeconds", 30),
        restart=spec.get("restartPolicy", "Always"),
        group=security.get("runAsGroup"),
        fs_group=security.get("fsGroup"),
        non_root=security.get("runAsNonRoot", False),
        service_links=spec.get("enableServiceLinks", True),
        service_account=spec.get("serviceAccountName", "default"),
        token=spec.get("automountServiceAccountToken"),
    )


def _container(container, pod_user):
    security, resources = container.at("securityContext"), container.at("resources")
    limits, requests = resources.at("limits"), resources.at("requests")
    ports = {}
    for port in container.each("ports"):
        ports[port.need("name")] = port.need("containerPort")
        if port.get("protocol", "TCP") != "TCP":
            raise ManifestError(f"{port.path}: only TCP is known here")
    # Requests are for the scheduler. Docker uses only the CPU share.
    requests.get("memory")
    cpu = requests.get("cpu")
    memory = limits.get("memory")
    if container.get("imagePullPolicy") not in ("IfNotPresent", "Never"):
        raise ManifestError(f"{container.path}: imagePullPolicy would ask a registry for an image that was loaded")
    return Container(
        name=container.need("name"),
        image=container.need("image"),
        command=container.get("command", []),
        args=container.get("args", []),
        env=[_variable(variable) for variable in container.each("env")],
        env_from=[_variables(source) for source in container.each("envFrom")],
        ports=ports,
        startup=_probe(container, "startupProbe", ports),
        liveness=_probe(container, "livenessProbe", ports),
        readiness=_probe(container, "readinessProbe", ports),
        user=security.get("runAsUser", pod_user),
        read_only_root=security.get("readOnlyRootFilesystem", False),
        escalation=security.get("allowPrivilegeEscalation", True),
        drop=security.at("capabilities").get("drop", []),
        memory_limit=_bytes(memory) if memory is not None else None,
        cpu_shares=int(_cores(cpu) * 1024) if cpu is not None else None,
        mounts=[
            Mount(mount.need("name"), mount.need("mountPath"), mount.get("readOnly", False))
            for mount in container.each("volumeMounts")
        ],
    )


def _variable(variable):
    """(name, 'value', text) or (name, 'field', path)."""
    name = variable.need("name")
    if "valueFrom" in variable:
        return name, "field", variable.at("valueFrom").at("fieldRef").need("fieldPath")
    return name, "value", str(variable.get("value", ""))


def _variables(source):
    """(name of a ConfigMap, whether it is optional)."""
    reference = source.at("configMapRef")
    return reference.need("name"), reference.get("optional", False)


def _probe(container, key, ports):
    if key not in container:
        return None
    probe = container.at(key)
    get = probe.at("httpGet")
    port = get.need("port")
    if isinstance(port, str):
        if port not in ports:
            raise ManifestError(f"{get.path}: no port of the container is called {port!r}")
        port = ports[port]
    read = Probe(
        path=get.need("path"),
        port=port,
        initial_delay=probe.get("initialDelaySeconds", 0),
        period=probe.get("periodSeconds", 10),
        timeout=probe.get("timeoutSeconds", 1),
        failures=probe.get("failureThreshold", 3),
        successes=probe.get("successThreshold", 1),
    )
    if key != "readinessProbe" and read.successes != 1:
        raise ManifestError(f"{probe.path}.successThreshold must be 1")
    return read


def _volume(volume):
    name = volume.need("name")
    if "secret" in volume:
        secret = volume.at("secret")
        return Volume(
            name,
            secret=secret.need("secretName"),
            optional=secret.get("optional", False),
            mode=secret.get("defaultMode", 0o644),
        )
    claim = volume.at("persistentVolumeClaim")
    return Volume(name, claim=claim.need("claimName"), claim_read_only=claim.get("readOnly", False))


def resolve_env(spec, facts, config_maps):
    """The environment of a container from envFrom and then env, in which `$(NAME)` refers to an earlier variable.

    `facts` resolves field references. `config_maps` holds the data of the existing ConfigMaps.
    """
    env = {}
    for name, optional in spec.container.env_from:
        if name in config_maps:
            env.update(config_maps[name])
        elif not optional:
            raise ManifestError(f"ConfigMap {name} does not exist, and is not optional")
    for name, kind, text in spec.container.env:
        env[name] = expand(text, env) if kind == "value" else field_of(facts, text)
    return env


def field_of(facts, path):
    label = re.fullmatch(r"metadata\.labels\['([^']+)'\]", path)
    if label and label[1] in facts["metadata.labels"]:
        return facts["metadata.labels"][label[1]]
    if not label and isinstance(facts.get(path), str):
        return facts[path]
    raise ManifestError(f"fieldRef {path!r} is not known here")


def expand(text, env):
    """Replaces `$(NAME)` if NAME is known. `$$(NAME)` becomes a literal `$(NAME)`."""

    def one(match):
        if match[0].startswith("$$"):
            return match[0][1:]
        return env.get(match[1], match[0])

    return re.sub(r"\$?\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)", one, text)


_UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9}


def _bytes(quantity):
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]*)", str(quantity)).groups()
    return int(number) * _UNITS[unit]


def _cores(quantity):
    text = str(quantity)
    return int(text[:-1]) / 1000 if text.endswith("m") else float(text)


def selects(selector, labels):
    """Whether matchLabels (or a Service's selector) matches these labels."""
    return all(labels.get(key) == value for key, value in selector.items())
