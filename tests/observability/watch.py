"""A real Prometheus scrapes a cluster of five nodes under load. Every documented metric and every query of every panel
and alert must have data. The alerts for lost nodes must fire and resolve.

The alerts wait for minutes before they fire. Here they wait for seconds (`WAITS`). The rules are otherwise unchanged.
"""

import glob
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
BINARIES = os.path.abspath(sys.argv[1])
# Time limit for an expected observation. It is generous because the machine may be busy.
PATIENCE_S = 90
WAITS = "3s"


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def wait_until(what, condition, seconds=PATIENCE_S):
    """Waits until `condition()` is true. The condition may return a text that explains why it is not."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result is True:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}: {result}")
        time.sleep(0.2)


class Cluster:
    """`chatd local`, with operations that kill its nodes and start them again."""

    def __init__(self, directory):
        self.data = os.path.join(directory, "cluster")
        certificates = os.path.join(directory, "certificates")
        subprocess.run([os.path.join(BINARIES, "chatctl"), "certs", certificates, "all=127.0.0.1"], check=True, stdout=subprocess.DEVNULL)
        self.authority = os.path.join(certificates, "ca.pem")
        files = {"CHAT_TLS_CERT": "all.pem", "CHAT_TLS_KEY": "all.key"}
        self.environment = {**os.environ, **{key: os.path.join(certificates, name) for key, name in files.items()}}
        self.log = open(os.path.join(directory, "cluster.log"), "wb")
        self.running = [self._run("--nodes", "5", "--base-port", "0")]
        path = os.path.join(self.data, "cluster.json")
        wait_until("cluster.json", lambda: os.path.exists(path))
        self.path = path
        wait_until("all are ready", lambda: all(self.ready(node) for node in self.nodes()) or "some are not")

    def _run(self, *arguments):
        words = [os.path.join(BINARIES, "chatd"), "local", "--data", self.data, *arguments]
        return subprocess.Popen(words, stdout=self.log, stderr=subprocess.STDOUT, env=self.environment)

    def nodes(self):
        with open(self.path, encoding="utf-8") as file:
            return json.load(file)["nodes"]

    def addresses(self):
        return ",".join(node["grpc"] for node in self.nodes())

    def ready(self, node):
        try:
            with urllib.request.urlopen(f"http://{node['metrics']}/readyz", timeout=2) as answer:
                return answer.status == 200
        except (OSError, urllib.error.URLError):
            return False

    def kill(self, name):
        (node,) = (node for node in self.nodes() if node["name"] == name)
        os.kill(node["pid"], signal.SIGKILL)

    def start(self, name):
        self.running.append(self._run("--start", name))

    def close(self):
        for process in self.running:
            if process.poll() is None:
                process.terminate()
        for process in self.running:
            process.wait(30)
        self.log.close()


class Prometheus:
    def __init__(self, directory, scraped):
        """Works in `directory`, on the existing content of its `data`, and scrapes according to `scraped`."""
        self.directory = directory
        self.port = free_port()
        with open(os.path.join(ROOT, "observability/prometheus/rules.yml"), encoding="utf-8") as file:
            rules = re.sub(r"^(\s+for:) .*$", rf"\1 {WAITS}", file.read(), flags=re.MULTILINE)
        self._write("rules.yml", rules)
        self._write("prometheus.yml", f"global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [rules.yml]\n{scraped}")
        self.log = open(os.path.join(directory, "prometheus.log"), "wb")
        words = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{self.port}"]
        self.process = subprocess.Popen(words, cwd=directory, stdout=self.log, stderr=subprocess.STDOUT)

        def is_up():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=10) as answer:
                    return answer.status == 200
            except (OSError, urllib.error.URLError) as error:
                return str(error)

        wait_until("Prometheus answers", is_up)

    def _write(self, name, text):
        with open(os.path.join(self.directory, name), "w", encoding="utf-8") as file:
            file.write(text)

    def get(self, path, **parameters):
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, text):
        return self.get("query", query=text)["result"]

    def alerts(self):
        """State of every pending or firing alert."""
        return {alert["labels"]["alertname"]: alert["state"] for alert in self.get("alerts")["alerts"]}

    def rules(self):
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


def scrapes(nodes):
    # In Kubernetes a scrape often sets `node` to the machine's name. That must not replace the node's own label.
    targets = json.dumps([node["metrics"] for node in nodes])
    return f"""
scrape_configs:
  - job_name: quorum-chat
    static_configs: [{{ targets: {targets}, labels: {{ cluster: local, node: machine-1 }} }}]
"""


def documented():
    with open(os.path.join(ROOT, "docs/metrics.md"), encoding="utf-8") as file:
        rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", file.read(), flags=re.MULTILINE)
    return [f"{name}_bucket" if kind == "histogram" else name for name, kind in rows]


def selectors(query):
    """The series that a query consists of. Each must exist, although an alert's query is empty in a healthy cluster.
    Series for events that have not happened (a status code, an outcome) may be missing."""
    found = re.findall(r"\b((?:chat|process)[\w:]*)(?:\{[^}]*\})?", query)
    return [name for name in found if not name.endswith("_") and name not in ("chat", "process", "chat_node")]


def runbooks():
    """Every alert has a section in the operator's manual, and no section describes a removed alert."""
    with open(os.path.join(ROOT, "observability/prometheus/rules.yml"), encoding="utf-8") as file:
        alerts = re.findall(r"^\s+- alert: (\w+)$", file.read(), flags=re.MULTILINE)
    with open(os.path.join(ROOT, "docs/operations.md"), encoding="utf-8") as file:
        manual = file.read()
    section = manual[manual.index("\n## Alerts\n") :]
    section = section[: section.index("\n## ", 1)]
    told = re.findall(r"^### (\w+)$", section, flags=re.MULTILINE)
    if told != alerts:
        raise AssertionError(f"docs/operations.md tells of {told}, the rules have {alerts}")


def linked_spans():
    """The dashboards link only to existing spans."""
    sources = glob.glob(os.path.join(ROOT, "src/**/*.rs"), recursive=True) + glob.glob(os.path.join(ROOT, "proto/**/*.proto"), recursive=True)
    text = ""
    for path in sources:
        with open(path, encoding="utf-8") as file:
            text += file.read()
    linked = set()
    for path in glob.glob(os.path.join(ROOT, "observability/grafana/dashboards/*.json")):
        with open(path, encoding="utf-8") as file:
            linked |= {urllib.parse.unquote(name) for name in re.findall(r"operation=([^&\"]+)", file.read())}
    assert linked, "no dashboard links to traces"
    for name in linked:
        known = f"rpc {name.split('/')[1]}(" if "/" in name else f'"{name}"'
        if known not in text:
            raise AssertionError(f"a dashboard links to spans named {name}: there are none")


def scrape_is_clean(node):
    """The metrics of a node pass Prometheus' own check."""
    with urllib.request.urlopen(f"http://{node['metrics']}/metrics", timeout=10) as answer:
        checked = subprocess.run(["promtool", "check", "metrics"], input=answer.read(), capture_output=True)
    complaints = (checked.stdout + checked.stderr).decode()
    if checked.returncode or complaints:
        raise AssertionError(f"promtool check metrics: {complaints}")


def panels(dashboard):
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def names_no_machine(where, text):
    """`node` is the scrape's label for a machine. The node's own label is `chat_node`."""
    if re.search(r"(?<![$\w])node(?!\w)", text):
        raise AssertionError(f"{where}: the label `node` is not the node's: {text}")


def dashboard_queries():
    for path in sorted(glob.glob(os.path.join(ROOT, "observability/grafana/dashboards/*.json"))):
        with open(path, encoding="utf-8") as file:
            dashboard = json.load(file)
        name = os.path.basename(path)
        for panel in panels(dashboard):
            for target in panel.get("targets", []):
                names_no_machine(f"{name}: {panel['title']}", target["expr"] + target.get("legendFormat", ""))
                yield f"{name}: {panel['title']}", panel["type"], target["expr"]
        for annotation in dashboard["annotations"]["list"]:
            if "expr" in annotation:
                yield f"{name}: annotation {annotation['name']}", "annotation", annotation["expr"]
        for variable in dashboard["templating"]["list"]:
            inner = re.fullmatch(r"label_values\((.*), (\w+)\)", variable.get("definition", ""))
            if inner:
                yield f"{name}: variable {variable['name']}", "variable", f"count by ({inner[2]}) ({inner[1]})"


def resolved(query, scrape_interval_s=1):
    # Grafana's own default is four intervals.
    rate_interval = f"{max(4 * scrape_interval_s, 15)}s"
    for name, value in (("$__rate_interval", rate_interval), ("$__interval", "15s"), ("$__range", "5m"), ("$cluster", ".*"), ("$node", ".*")):
        query = query.replace(name, value)
    if "$" in query:
        raise AssertionError(f"a variable that is not known here: {query}")
    return query


def no_data(prometheus, query):
    """The reason why a query has no data of the expected shape, or nothing."""
    result = prometheus.query(query)
    if not result:
        return "no data"
    if any(sample["value"][1] == "NaN" for sample in result) and all(sample["value"][1] == "NaN" for sample in result):
        return "not a number"
    return None


def everything_has_data(prometheus):
    """Checks every metric, every series of every rule, and every query of every panel."""
    missing = [name for name in documented() if not prometheus.query(name)]
    for rule in prometheus.rules():
        if rule["health"] != "ok":
            missing.append(f"{rule['name']}: {rule['health']} {rule.get('lastError', '')}")
        missing += [f"{rule['name']}: {name}" for name in selectors(rule["query"]) if not prometheus.query(name)]
    missing += panels_without_data(prometheus)
    return True if not missing else "\n".join(missing)


def panels_without_data(prometheus, scrape_interval_s=1):
    missing = []
    for where, kind, query in dashboard_queries():
        text = resolved(query, scrape_interval_s)
        if kind == "annotation":
            prometheus.query(text)
            continue
        why = no_data(prometheus, text)
        if why:
            missing.append(f"{where}: {why}: {text}")
    return missing


def history(nodes, scrape_interval_s):
    """The data of a Prometheus that scrapes rarely, made from several copies of the nodes' current metrics. Counters
    grow."""
    now, count = int(time.time()), 20
    lines = []
    for node in nodes:
        with urllib.request.urlopen(f"http://{node['metrics']}/metrics", timeout=10) as answer:
            said = [line for line in answer.read().decode().splitlines() if line and not line.startswith("#")]
        labels = f'cluster="local",node="machine-1",job="quorum-chat",instance="{node["metrics"]}"'
        for line in [*said, "up 1", "scrape_duration_seconds 0.1"]:
            series, value = line.rsplit(" ", 1)
            name, own = re.fullmatch(r"(\w+)(?:\{(.*)\})?", series).groups()
            grows = name.endswith(("_total", "_count", "_sum", "_bucket"))
            for step in range(count):
                at = now - (count - 1 - step) * scrape_interval_s
                lines.append(f"{name}{{{labels}{',' + own if own else ''}}} {float(value) + (step if grows else 0)} {at}")
    return "\n".join([*lines, "# EOF", ""])


def scraped_seldom(directory, nodes, scrape_interval_s):
    """The dashboards show data at a scrape interval that is common elsewhere."""
    directory = os.path.join(directory, f"every-{scrape_interval_s}-s")
    os.mkdir(directory)
    path = os.path.join(directory, "history")
    with open(path, "w", encoding="utf-8") as file:
        file.write(history(nodes, scrape_interval_s))
    words = ["promtool", "tsdb", "create-blocks-from", "openmetrics", path, os.path.join(directory, "data")]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    prometheus = Prometheus(directory, "")
    try:
        # Some series are recorded by rules at their next evaluation.
        what = f"everything has data, scraped every {scrape_interval_s} s"
        wait_until(what, lambda: "\n".join(panels_without_data(prometheus, scrape_interval_s)) or True)
    finally:
        prometheus.close()


def state(prometheus, name, wanted):
    now = prometheus.alerts()
    return True if now.get(name) in wanted else f"{name} is {now.get(name)}, all: {now}"


def play(directory):
    cluster = Cluster(directory)
    load = prometheus = None
    try:
        prometheus = Prometheus(directory, scrapes(cluster.nodes()))
        chatctl = [os.path.join(BINARIES, "chatctl"), "--tls-ca", cluster.authority, "--nodes", cluster.addresses()]
        socket_path = os.path.join(cluster.data, "n1", "admin.sock")
        backup = [*chatctl, "backup", "--socket", socket_path, os.path.join(directory, "backup")]
        subprocess.run(backup, check=True, stdout=subprocess.DEVNULL)
        words = [*chatctl, "--output", "json", "verify", "--clients", "8", "--seconds", "600"]
        load = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

        wait_until("everything has data", lambda: everything_has_data(prometheus))
        count = len(list(dashboard_queries()))
        print(f"{len(documented())} metrics, {len(prometheus.rules())} rules and {count} queries of dashboards have data")
        for node in cluster.nodes():
            scrape_is_clean(node)
        for interval in (15, 60):
            scraped_seldom(directory, cluster.nodes(), interval)
        print("they have data when Prometheus scrapes every 15 s or 60 s, too")
        wait_until("no alert", lambda: not prometheus.alerts() or f"{prometheus.alerts()}")

        leader = prometheus.query("chat_raft_is_leader == 1")[0]["metric"]["chat_node"]
        names = [node["name"] for node in cluster.nodes()]
        first, second, third = [leader, *(name for name in names if name != leader)][:3]
        cluster.kill(first)
        wait_until("another leader is counted", lambda: bool(prometheus.query("sum(chat_raft_leader_changes_total) > 0")) or "none")
        cluster.kill(second)
        wait_until("QuorumAtRisk", lambda: state(prometheus, "QuorumAtRisk", ["pending", "firing"]))
        wait_until("QuorumAtRisk fires", lambda: state(prometheus, "QuorumAtRisk", ["firing"]))
        wait_until("NodeNotReady fires", lambda: state(prometheus, "NodeNotReady", ["firing"]))
        assert "QuorumLost" not in prometheus.alerts(), prometheus.alerts()
        print("two nodes are lost: QuorumAtRisk and NodeNotReady fire")

        cluster.start(first)
        cluster.start(second)
        for name in ("QuorumAtRisk", "NodeNotReady"):
            wait_until(f"{name} is over", lambda name=name: state(prometheus, name, [None]))
        print("they are back, and the alerts are over")

        load.send_signal(signal.SIGINT)
        verdict = json.loads(load.communicate(timeout=PATIENCE_S)[0])
        assert load.returncode == 0, verdict
        print(f"{verdict['acknowledged']} messages acknowledged meanwhile, none lost")

        for name in (first, second, third):
            cluster.kill(name)
        wait_until("QuorumLost fires", lambda: state(prometheus, "QuorumLost", ["firing"]))
        wait_until("NoLeader fires", lambda: state(prometheus, "NoLeader", ["firing"]))
        print("three nodes are lost: QuorumLost and NoLeader fire")
    except BaseException:
        for name in ("cluster.log", "prometheus.log"):
            with open(os.path.join(directory, name), encoding="utf-8", errors="replace") as file:
                print(f"--- {name}\n{''.join(file.readlines()[-40:])}")
        raise
    finally:
        if load is not None and load.poll() is None:
            load.kill()
            load.wait()
        if prometheus is not None:
            prometheus.close()
        cluster.close()


def configmaps():
    """The dashboards in k8s/ are identical to those of Grafana."""
    made = subprocess.run([os.path.join(ROOT, "observability/configmaps")], check=True, capture_output=True, text=True).stdout
    with open(os.path.join(ROOT, "k8s/dashboards.yaml"), encoding="utf-8") as file:
        if file.read() != made:
            raise AssertionError("k8s/dashboards.yaml is not what is in observability/: run observability/configmaps > k8s/dashboards.yaml")


def main():
    runbooks()
    linked_spans()
    configmaps()
    directory = tempfile.mkdtemp(prefix="quorum-watch-")
    try:
        play(directory)
    finally:
        shutil.rmtree(directory)


main()
