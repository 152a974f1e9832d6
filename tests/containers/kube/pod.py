"""The kubelet. It runs a pod according to its specification.

Each pod has a thread that creates the container, waits for its end and recreates it after a backoff, and one thread for
each probe. The pod keeps its address when its container is restarted.
"""

import base64
import http.client
import os
import shutil
import tempfile
import threading
import time
import uuid

from engine import Container, EngineError, docker, inspect_image, run

from .fields import ManifestError
from .made import LABEL, PREFIX
from .network import BRIDGE, DNS, DOMAIN
from .spec import expand, resolve_env

BACKOFF_FIRST, BACKOFF_MAX = 10.0, 300.0
# Where the kubelet mounts the token of a service account.
TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"


class Node:
    """State that the pods of the machine share (volumes, Secrets, ConfigMaps), and the notification of changes."""

    def __init__(self):
        self.changed = threading.Condition()
        self.config_maps, self.secrets = {}, {}
        # The API server, for pods with a token.
        self.api = None
        self.directory = tempfile.mkdtemp(prefix=PREFIX)
        # Every container that ended, as (pod, exit code, whether the end was requested).
        self.ends = []
        resolv = os.path.join(self.directory, "resolv.conf")
        with open(resolv, "w", encoding="ascii") as file:
            file.write(f"search default.{DOMAIN} {DOMAIN} cluster.local\nnameserver {DNS}\noptions ndots:5\n")
        self.resolv_conf = resolv

    def notify(self):
        with self.changed:
            self.changed.notify_all()

    def wait_for(self, condition, what, seconds):
        """Waits until `condition()` holds. Polls at short intervals because changes outside the pods are not
        notified."""
        deadline = time.monotonic() + seconds
        while not (result := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s: {what}")
            with self.changed:
                self.changed.wait(0.2)
        return result

    def close(self):
        shutil.rmtree(self.directory)

    def claim(self, name):
        """The volume of a claim. Like a new disk, it is empty, belongs to root, and has no copy of the image's
        directory."""
        volume = PREFIX + name
        docker("volume", "create", "--label", LABEL, volume)
        return volume

    def delete_claim(self, name):
        docker("volume", "rm", PREFIX + name)

    def claims(self):
        names = docker("volume", "ls", "--quiet", "--filter", f"label={LABEL}").split()
        return sorted(name.removeprefix(PREFIX) for name in names)


class Pod:
    def __init__(self, node, network, name, spec, namespace="default", subdomain="", revision=""):
        self.node, self.network, self.name, self.spec = node, network, name, spec
        self.namespace, self.subdomain, self.revision = namespace, subdomain, revision
        self.uid = uuid.uuid4().hex[:8]
        self.address = network.new_address()
        self.pid, self.rules = 0, None
        self.ready, self.ready_since = False, None
        self.terminating, self.gone = False, threading.Event()
        self.restarts, self.exit_code, self.waiting = 0, None, ""
        self.container = ""
        self.stop_seconds = None
        # Probe results of the running container, by kind, as [successes, failures].
        self.probed = {}
        self._attempts = 0
        self._creating = threading.Lock()
        self._deleted = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        self._thread.start()

    def available(self, seconds):
        return self.ready and time.monotonic() - self.ready_since >= seconds

    def delete(self, grace=None):
        """Requests the end of the pod. `gone` is set when it has ended. Grace 0 sends SIGKILL at once."""
        self.terminating = True
        self.grace = self.spec.grace if grace is None else grace
        self._set_ready(False)
        self._deleted.set()
        with self._creating:
            container = self.container
        if container:
            began = time.monotonic()
            # Like the kubelet, sends the image's stop signal, and SIGKILL after the grace period.
            run("docker", "stop", "--time", str(self.grace), container, check=False, timeout=self.grace + 60)
            self.stop_seconds = time.monotonic() - began
        self._thread.join()

    def exec(self, *command, **options):
        return Container(self.container).exec(*command, **options)

    def logs(self):
        return Container(self.container).logs()

    def _run(self):
        backoff = 0.0
        while not self._deleted.is_set():
            began = time.monotonic()
            with self._creating:
                if self._deleted.is_set():
                    break
                try:
                    self._create()
                except (EngineError, ManifestError) as error:
                    self.waiting = str(error)
            if self.waiting:
                self.node.notify()
                self._deleted.wait(BACKOFF_FIRST)
                self.waiting = ""
                continue
            ended = threading.Event()
            probes = self._start_probes(ended)
            self.exit_code = Container(self.container).wait(None)
            self.pid, self.rules = 0, None
            ended.set()
            self._set_ready(False)
            for probe in probes:
                probe.join()
            self.node.ends.append((self.name, self.exit_code, self._deleted.is_set()))
            if self._deleted.is_set():
                break
            if self.spec.restart == "Never" or (self.spec.restart == "OnFailure" and self.exit_code == 0):
                self.node.notify()
                self._deleted.wait()
                break
            if time.monotonic() - began > 600:
                backoff = 0.0
            self.waiting = "CrashLoopBackOff"
            self.node.notify()
            self._deleted.wait(backoff)
            self.waiting = ""
            backoff = min(max(BACKOFF_FIRST, backoff * 2), BACKOFF_MAX)
            if not self._deleted.is_set():
                self.restarts += 1
                Container(self.container).remove()
        if self.container:
            Container(self.container).remove()
        self.gone.set()
        self.node.notify()

    def _create(self):
        spec, container = self.spec, self.spec.container
        facts = {
            "metadata.name": self.name,
            "metadata.namespace": self.namespace,
            "metadata.labels": spec.labels,
            "status.podIP": self.address,
        }
        env = resolve_env(spec, facts, self.node.config_maps)
        if spec.token:
            env |= self.node.api.env()
        self._attempts += 1
        name = f"{PREFIX}{self.name}-{self.uid}-{self._attempts}"
        arguments = ["create", "--name", name, "--label", LABEL, "--hostname", self.name]
        # The kubelet ignores an image's HEALTHCHECK.
        arguments.append("--no-healthcheck")
        arguments += ["--network", BRIDGE, "--ip", self.address]
        arguments += ["--volume", f"{self.node.resolv_conf}:/etc/resolv.conf:ro"]
        user = self._user()
        if container.user is not None or spec.group is not None:
            arguments += ["--user", f"{user}:{spec.group or 0}"]
        if spec.fs_group is not None:
            arguments += ["--group-add", str(spec.fs_group)]
        if container.read_only_root:
            arguments.append("--read-only")
        if not container.escalation:
            arguments += ["--security-opt", "no-new-privileges"]
        for capability in container.drop:
            arguments += ["--cap-drop", capability]
        if container.memory_limit is not None:
            # Kubernetes machines have no swap.
            arguments += ["--memory", str(container.memory_limit), "--memory-swap", str(container.memory_limit)]
        if container.cpu_shares is not None:
            arguments += ["--cpu-shares", str(container.cpu_shares)]
        for key, value in env.items():
            arguments += ["--env", f"{key}={value}"]
        for mount in container.mounts:
            arguments += ["--mount", self._mount(mount)]
        if spec.token:
            source = self.node.api.mount(spec.service_account, self.namespace)
            arguments += ["--mount", f"type=bind,source={source},destination={TOKEN},readonly"]
        command = [expand(word, env) for word in container.command]
        if command:
            arguments += ["--entrypoint", command.pop(0)]
        docker(*arguments, container.image, *command, *(expand(word, env) for word in container.args))
        self.container = name
        docker("start", name)
        self.pid = Container(name).pid()
        self.probed = {}
        self.network.apply_policies()
        self.node.notify()

    def _user(self):
        image = inspect_image(self.spec.container.image)["Config"]
        user = self.spec.container.user
        if user is None:
            user = (image["User"] or "0").split(":")[0]
        if self.spec.non_root and (not str(user).isdigit() or int(user) == 0):
            raise ManifestError(f"runAsNonRoot, but the user is {user!r}")
        return user

    def _mount(self, mount):
        volume = next((volume for volume in self.spec.volumes if volume.name == mount.volume), None)
        if volume is None:
            raise ManifestError(f"no volume is called {mount.volume!r}")
        if volume.claim:
            name = self.node.claim(volume.claim)
            self._give_to_group(docker("volume", "inspect", "--format", "{{.Mountpoint}}", name))
            read_only = ",readonly" if mount.read_only or volume.claim_read_only else ""
            return f"type=volume,source={name},destination={mount.path},volume-nocopy{read_only}"
        if not mount.read_only:
            raise ManifestError(f"the Secret at {mount.path} is not mounted read-only")
        return f"type=bind,source={self._secret(volume)},destination={mount.path},readonly"

    def _give_to_group(self, directory):
        """fsGroup with OnRootMismatch. The group becomes the owner of the volume's root and of its content."""
        if self.spec.fs_group is None or os.stat(directory).st_gid == self.spec.fs_group:
            return
        for path, directories, files in os.walk(directory):
            for entry in [path, *(os.path.join(path, file) for file in files)]:
                os.chown(entry, -1, self.spec.fs_group)
                os.chmod(entry, os.stat(entry).st_mode | (0o2070 if entry == path else 0o060))

    def _secret(self, volume):
        data = self.node.secrets.get(volume.secret)
        if data is None and not volume.optional:
            raise ManifestError(f"Secret {volume.secret} does not exist, and is not optional")
        directory = os.path.join(self.node.directory, f"{self.name}-{self.uid}", volume.name)
        os.makedirs(directory, exist_ok=True)
        os.chmod(directory, 0o755)
        _write_atomically(directory, data or {}, self.spec.fs_group or 0, volume.mode)
        return directory

    def update_secret(self, name):
        """Writes a changed Secret into the volumes of the running pod, as the kubelet does within a minute."""
        for volume in self.spec.volumes:
            if volume.secret == name:
                self._secret(volume)

    def _set_ready(self, ready):
        if ready != self.ready:
            self.ready_since = time.monotonic() if ready else None
            self.ready = ready
            self.node.notify()

    def _start_probes(self, ended):
        container = self.spec.container
        started = threading.Event()

        def on_started():
            started.set()
            if container.readiness is None:
                self._set_ready(True)

        threads = []
        if container.startup is None:
            on_started()
        else:
            # A failed startup probe ends the container, as liveness does.
            threads.append(self._prober("startup", container.startup, ended, None, on_started, self._kill))
        if container.liveness is not None:
            threads.append(self._prober("liveness", container.liveness, ended, started, None, self._kill))
        if container.readiness is not None:
            up, down = (lambda: self._set_ready(not self.terminating)), (lambda: self._set_ready(False))
            threads.append(self._prober("readiness", container.readiness, ended, started, up, down))
        for thread in threads:
            thread.start()
        return threads

    def _kill(self):
        run("docker", "stop", "--time", str(self.spec.grace), self.container, check=False)

    def _prober(self, kind, probe, ended, after, on_success, on_failure):
        def run():
            while after is not None and not after.wait(0.1):
                if ended.is_set():
                    return
            if ended.wait(probe.initial_delay):
                return
            counts = self.probed.setdefault(kind, [0, 0])
            in_a_row = 0
            due = time.monotonic()
            while not ended.is_set():
                good = _get(self.address, probe)
                if ended.is_set():
                    return
                counts[0 if good else 1] += 1
                in_a_row = max(in_a_row, 0) + 1 if good else min(in_a_row, 0) - 1
                if in_a_row >= probe.successes and on_success is not None:
                    on_success()
                if kind == "startup" and in_a_row >= probe.successes:
                    return
                if -in_a_row >= probe.failures:
                    on_failure()
                    if kind != "readiness":
                        return
                due += probe.period
                ended.wait(max(0.0, due - time.monotonic()))

        return threading.Thread(target=run, daemon=True)


def _write_atomically(directory, data, group, mode):
    """Replaces all files of a volume at once. They are links into a directory that is itself a link."""
    files = f"..{time.time_ns()}"
    os.mkdir(os.path.join(directory, files), 0o755)
    for name, text in data.items():
        path = os.path.join(directory, files, name)
        with open(path, "wb") as file:
            file.write(base64.b64decode(text))
        os.chown(path, 0, group)
        os.chmod(path, mode)
    link = os.path.join(directory, "..data")
    before = os.readlink(link) if os.path.islink(link) else None
    os.symlink(files, f"{link}_tmp")
    os.rename(f"{link}_tmp", link)
    present = {name for name in os.listdir(directory) if not name.startswith("..")}
    for name in data.keys() - present:
        os.symlink(os.path.join("..data", name), os.path.join(directory, name))
    for name in present - data.keys():
        os.remove(os.path.join(directory, name))
    if before is not None:
        shutil.rmtree(os.path.join(directory, before))


def _get(address, probe):
    connection = http.client.HTTPConnection(address, probe.port, timeout=probe.timeout)
    try:
        connection.request("GET", probe.path)
        return 200 <= connection.getresponse().status < 400
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
