"""The cluster of docker-compose.yml, as an operator runs it, and the load on it during fault injection."""

import json
import os
import secrets
import shutil
import tempfile
from pathlib import Path

import engine
from engine import Container, EngineError, Not, docker, run, wait_until

ROOT = Path(__file__).resolve().parents[2]
FIRST = ["n1", "n2", "n3", "n4", "n5"]
LATER = ["n6", "n7"]
# Marks everything that is created outside the compose file, so that cleanup finds it.
LABEL = "quorum-chat.test"
SOCKET = "/data/admin.sock"
# Makes digest comparisons, snapshots and log truncation frequent, so that faults coincide with them. Damage has to be
# found while a scenario waits for it.
SETTINGS = {"CHAT_DIGEST_INTERVAL_S": "1", "CHAT_SNAPSHOT_LOG_MB": "1", "CHAT_LOG_ENTRIES_KEPT": "200",
            "CHAT_SCRUB_INTERVAL_S": "10"}
# Time limit for a node or the cluster to reach a state. It is generous so that the tests pass on slow machines.
PATIENCE_S = 90


class Broken(Exception):
    """The cluster violates a requirement of the test."""


def expect(what, found, wanted):
    if found != wanted:
        raise Broken(f"{what}: {found!r}, and not {wanted!r}")


def compose_command():
    """`docker compose` (v2) where it is installed, otherwise `docker-compose` (1.29 or later)."""
    if run("docker", "compose", "version", check=False).returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"]


class Cluster:
    """Five nodes, and two more that may join. The names of all its resources contain `project`."""

    def __init__(self, project, image, tls=False):
        self.project, self.image = project, image
        # Options that chatctl needs to connect to the nodes.
        self.tls_words = ["--tls-ca", "/certs/ca.pem"] if tls else []
        self.command = compose_command()
        self.secret = secrets.token_hex(16)
        self.files = [ROOT / "docker-compose.yml"]
        # For further compose files.
        self.folder = Path(tempfile.mkdtemp(prefix=f"{project}-"))
        names = FIRST + LATER
        ports = engine.free_ports(2 * len(names))
        self.grpc = dict(zip(names, ports))
        own = {key: value for key, value in os.environ.items() if not key.startswith(("CHAT_", "COMPOSE_"))}
        self.environment = {**own, **SETTINGS, "CHAT_IMAGE": image, "CHAT_PEER_SECRET": self.secret}
        for number, name in enumerate(names, 1):
            self.environment[f"CHAT_PORT_{number}"] = str(self.grpc[name])
            self.environment[f"CHAT_WEB_PORT_{number}"] = str(ports[len(names) + number - 1])
        # Names of the containers that should be running.
        self.up_names = []
        if tls:
            self.files.append(ROOT / "docker-compose.tls.yml")
            self.certs = self.folder / "certs"
            self.certs.mkdir()
            # The user of the image writes to this folder.
            self.folder.chmod(0o755)
            self.certs.chmod(0o777)
            self.environment["CHAT_CERTS"] = str(self.certs)
            self.issue_certificates()

    def issue_certificates(self):
        """Issues new certificates for all nodes, from the existing authority or from a new one."""
        options = ["--rm", "--network", "none", "--volume", f"{self.certs}:/certs"]
        options += ["--entrypoint", "/usr/local/bin/chatctl"]
        docker("run", *options, self.image, "certs", "/certs", *FIRST, *LATER)

    @property
    def network(self):
        return f"{self.project}_default"

    def volume(self, name):
        return f"{self.project}_{name}"

    def compose(self, *words, more_files=()):
        files = [word for file in [*self.files, *more_files] for word in ["--file", str(file)]]
        # Without this, v2 resolves paths in the directory of the first file, and 1.29 in that of the caller.
        place = ["--project-directory", str(ROOT), "--project-name", self.project]
        return run(*self.command, *files, *place, "--profile", "seven", *words, env=self.environment, timeout=300)

    def up(self, names, more_files=(), recreate=False):
        """Creates and starts these nodes, as `docker compose up` does."""
        if not self.up_names:
            # The service that the nodes depend on. It ends by itself.
            self.compose("up", "--no-build", "--no-deps", "secret", more_files=more_files)
        words = ["--force-recreate"] if recreate else []
        self.compose("up", "--detach", "--no-build", "--no-deps", *words, *names, more_files=more_files)
        self.up_names += [name for name in names if name not in self.up_names]

    def container(self, name):
        """The container of a node. It changes each time that compose recreates it."""
        filters = [f"label=com.docker.compose.project={self.project}", f"label=com.docker.compose.service={name}"]
        words = [word for one in filters for word in ["--filter", one]]
        ids = docker("ps", "--all", "--quiet", "--no-trunc", *words).split()
        if len(ids) != 1:
            raise EngineError(f"{name} has {len(ids)} containers")
        return Container(ids[0])

    def address_list(self, names):
        """The addresses of these nodes for clients on this machine."""
        return ",".join(f"localhost:{self.grpc[name]}" for name in names)

    def addresses(self):
        """The addresses that the nodes of `up_names` use for each other."""
        return {name: self.container(name).networks()[self.network] for name in self.up_names}

    def remove_node(self, name):
        """Removes the container and the volume of a node."""
        self.container(name).remove()
        docker("volume", "rm", self.volume(name))
        self.up_names.remove(name)

    # State of the cluster

    def running(self):
        """The nodes that run and are on the network, and can therefore report about the others."""

        def can_be_asked(name):
            record = self.container(name).inspect()
            return record["State"]["Status"] == "running" and self.network in record["NetworkSettings"]["Networks"]

        return [name for name in self.up_names if can_be_asked(name)]

    def chatctl(self, name, *words, check=True):
        """Runs chatctl in the container of a node, with the addresses of all nodes on this network."""
        nodes = ",".join(f"{one}:50051" for one in self.up_names)
        options = ["--nodes", nodes, "--output", "json", "--timeout", "5", *self.tls_words]
        return self.container(name).exec("/usr/local/bin/chatctl", *options, *words, check=check, timeout=30)

    def status(self, through=None):
        """The output of `chatctl status` from the node `through`, or from the first running node that has a leader."""
        running = self.running() if through is None else [through]
        told, why = None, "no node runs"
        for name in running:
            done = self.chatctl(name, "status", "--socket", "/data/admin.sock", check=False)
            if done.returncode != 0:
                why = f"{name}: {done.stderr}"
                continue
            told = told or json.loads(done.stdout)
            if json.loads(done.stdout)["failures_tolerated"] is not None:
                return json.loads(done.stdout)
        if told is None:
            raise EngineError(why)
        return told

    def nodes(self):
        return {node["name"]: node for node in self.status()["nodes"]}

    def leader(self):
        """The name of the leader, if there is one and it runs."""

        def found():
            running = self.running()
            for node in self.status()["nodes"]:
                if node["role"] == "leader" and node["name"] in running:
                    return node["name"]
            return Not("nobody who runs leads")

        return wait_until("a leader", found, PATIENCE_S)

    def revision(self):
        return self.status()["revision"]

    def advance(self, count=30, seconds=PATIENCE_S):
        """Waits until this many further changes have been stored."""
        began = wait_until("somebody tells the revision", lambda: {"at": self.revision()}, seconds)["at"]

        def grown():
            now = self.revision()
            return now >= began + count or Not(f"from revision {began} to {now}")

        wait_until(f"{count} changes are stored", grown, seconds)

    def health(self, name, ready=True):
        """The exit code and the output line of `chatd health` in the container of a node."""
        done = self.container(name).exec("/usr/local/bin/chatd", "health", *(["--ready"] if ready else []), check=False)
        return done.returncode, (done.stdout + done.stderr).strip()

    def ready(self, names, seconds=PATIENCE_S):
        """Waits until these nodes report that they are ready for requests."""
        for name in names:

            def is_ready():
                code, line = self.health(name)
                return code == 0 or Not(line)

            wait_until(f"{name} is ready", is_ready, seconds)

    def tolerates(self, failures, seconds=PATIENCE_S):
        """Waits until this many more nodes may fail."""

        def does():
            now = self.status()["failures_tolerated"]
            return now == failures or Not(f"now {now}")

        wait_until(f"{failures} more nodes may fail", does, seconds)

    def level(self, seconds=PATIENCE_S):
        """Waits until all nodes are healthy voters that have caught up, and have reported the same digest of the newest
        revision. Different digests at one revision fail at once. Returns the revision."""

        def is_level():
            status = self.status()
            nodes = status["nodes"]
            compared, digests = status["compared"], {node["name"]: node["digest"] for node in nodes}
            if len({digest for digest in digests.values() if digest}) > 1:
                raise Broken(f"different digests, compared at {compared}: {digests}")
            if sorted(node["name"] for node in nodes) != sorted(self.up_names):
                return Not(f"the members are {[node['name'] for node in nodes]}")
            for node in nodes:
                if not (node["voter"] and node["healthy"] and node["lag_entries"] == 0 and node["digest"]):
                    return Not(node)
            if not compared or compared["revision"] != status["revision"]:
                return Not(f"compared at {compared}, and the revision is {status['revision']}")
            return status["revision"]

        return wait_until("all nodes are level and have told equal digests", is_level, seconds)

    # Cleanup

    def tails(self, lines):
        """The last log lines of each node."""
        told = []
        for name in FIRST + LATER:
            try:
                container = self.container(name)
                state = container.state()
                logs = container.logs(tail=lines)
                told.append(f"--- {name}: {state['Status']}, exit code {state['ExitCode']}\n{logs}")
            except EngineError:
                # The container was never created, or is being recreated.
                continue
        return "\n".join(told)

    def sweep(self):
        """Removes all containers, networks and volumes of this project."""
        labels = [f"com.docker.compose.project={self.project}", f"{LABEL}={self.project}"]
        # The order matters because each kind uses the next.
        for container in [one for label in labels for one in engine.containers_of(label)]:
            Container(container).remove()
        for label in labels:
            for network in docker("network", "ls", "--quiet", "--filter", f"label={label}").split():
                engine.remove_network(network)
            for volume in docker("volume", "ls", "--quiet", "--filter", f"label={label}").split():
                engine.remove_volume(volume)
        self.up_names = []
        shutil.rmtree(self.folder, ignore_errors=True)


class Load:
    """`chatctl verify` from the image. It uses the published ports, like any client on this machine."""

    # The load ends with the scenario. Below this limit, the pace of the load does not depend on it.
    SECONDS_MAX = 600
    CLIENTS = 4
    HISTORY = "/data/history.jsonl"
    ZERO = ["lost", "duplicated", "reordered", "phantom", "stale_reads", "resume_gaps"]

    def __init__(self, cluster, seed, names):
        self.cluster, self.names = cluster, list(names)
        self.container = Container(f"{cluster.project}-verify")
        self.container.remove()
        options = ["--network", "host", "--label", f"{LABEL}={cluster.project}"]
        options += ["--entrypoint", "/usr/local/bin/chatctl"]
        words = ["verify", "--output", "json", "--nodes", cluster.address_list(names), "--seed", str(seed)]
        if cluster.tls_words:
            options += ["--volume", f"{cluster.certs}:/certs:ro"]
            words += cluster.tls_words
        words += ["--clients", str(self.CLIENTS), "--seconds", str(self.SECONDS_MAX), "--history", self.HISTORY]
        engine.run_container(self.container.name, cluster.image, *words, options=options)

    def finish(self, read_back=None):
        """Ends the load, lets it read everything back through `read_back` nodes, and returns its report."""
        if self.container.running():
            self.container.kill("INT")
        code = self.container.wait(PATIENCE_S)
        said = self.container.logs()
        try:
            # The report is the last output on stdout. Error messages go to stderr.
            report = json.loads(run("docker", "logs", self.container.name).stdout)
        except ValueError:
            raise Broken(f"chatctl verify: exit code {code}, no report: {said}") from None
        wrong = {count: report[count] for count in self.ZERO if report[count] != 0}
        if wrong or code != 0:
            raise Broken(f"chatctl verify: exit code {code}, {wrong}: {said}")
        if report["seconds"] >= self.SECONDS_MAX:
            raise Broken(f"the scenario took longer than the load: {report['seconds']} s")
        expected = len(self.names) if read_back is None else read_back
        expect("nodes that were read back", report["nodes_read_back"], expected)
        return report

    def history(self):
        """All operations, with their times by the clock of this machine. Available only after `finish`."""
        lines = self.container.read_file(self.HISTORY)[0].decode().splitlines()
        return History(json.loads(lines[0]), [json.loads(line) for line in lines[1:]])

    def remove(self):
        self.container.remove()


class History:
    """The operations that clients observed. Times in a record are relative to the start of the run. `began` and `ended`
    return seconds since the epoch."""

    def __init__(self, header, records):
        self.nodes, self.records = header["nodes"], records
        # A message is stored while its send is in flight, and the answer contains the time in milliseconds. That bounds
        # the start of the run from both sides.
        least, most = float("-inf"), float("inf")
        for record in records:
            sent = record.get("send", {}).get("outcome")
            if isinstance(sent, dict) and not sent["ok"]["repeated"]:
                stored = sent["ok"]["time_ms"] / 1e3
                least = max(least, stored - record["ended_us"] / 1e6)
                most = min(most, stored + 1e-3 - record["began_us"] / 1e6)
        if not least - 0.05 <= most <= least + 1:
            raise Broken(f"the times of the history do not fit those of the messages: {least} to {most}")
        self.start = (least + most) / 2

    def began(self, record):
        return self.start + record["began_us"] / 1e6

    def ended(self, record):
        return self.start + record["ended_us"] / 1e6

    def calls(self):
        """Each call that has an outcome, as the record, the kind of call and the outcome (`{"ok": ...}`, "refused" or
        "unknown")."""
        for record in self.records:
            for kind in ["send", "read", "mark_read", "deliver", "delete"]:
                if kind in record:
                    yield record, kind, record[kind]["outcome"]

    def acknowledged_between(self, since, until):
        """Sends that started and were acknowledged within this interval."""
        sends = (record for record, kind, outcome in self.calls() if kind == "send" and isinstance(outcome, dict))
        return [record for record in sends if since <= self.began(record) and self.ended(record) <= until]
