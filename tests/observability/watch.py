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
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

from local_cluster import PROGRAMS, TlsCluster
from waiting import PATIENCE, Not, wait_until

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
WAITS = "3s"


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


class Prometheus:
    def __init__(self, directory, scraped):
        """Works in `directory`, on the existing content of its `data`, and scrapes according to `scraped`."""
        self.directory = directory
        self.port = free_port()
        with open(os.path.join(ROOT, "observability/prometheus/rules.yml"), encoding="utf-8") as file:
            rules = re.sub(r"^(\s+for:) .*$", rf"\1 {WAITS}", file.read(), flags=re.MULTILINE)
        self._write("rules.yml", rules)
        intervals = "global: { scrape_interval: 1s, evaluation_interval: 1s }"
        self._write("prometheus.yml", f"{intervals}\nrule_files: [rules.yml]\n{scraped}")
        self.log = open(os.path.join(directory, "prometheus.log"), "wb")
        words = [
            "prometheus",
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        self.process = subprocess.Popen(words, cwd=directory, stdout=self.log, stderr=subprocess.STDOUT)

        def is_up():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=10) as answer:
                    return answer.status == 200
            except (OSError, urllib.error.URLError) as error:
                return Not(error)

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
    sources = glob.glob(os.path.join(ROOT, "src/**/*.rs"), recursive=True)
    sources += glob.glob(os.path.join(ROOT, "proto/**/*.proto"), recursive=True)
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
    values = {
        "$__rate_interval": rate_interval,
        "$__interval": "15s",
        "$__range": "5m",
        "$cluster": ".*",
        "$node": ".*",
    }
    for name, value in values.items():
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
    return Not("\n".join(missing)) if missing else True


def all_panels_have_data(prometheus, scrape_interval_s):
    missing = panels_without_data(prometheus, scrape_interval_s)
    return Not("\n".join(missing)) if missing else True


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
                all_labels = f"{labels},{own}" if own else labels
                lines.append(f"{name}{{{all_labels}}} {float(value) + (step if grows else 0)} {at}")
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
        wait_until(what, lambda: all_panels_have_data(prometheus, scrape_interval_s))
    finally:
        prometheus.close()


def state(prometheus, name, wanted):
    now = prometheus.alerts()
    return True if now.get(name) in wanted else Not(f"{name} is {now.get(name)}, all: {now}")


def play(directory):
    # With certificates, so that their metrics have data.
    cluster = TlsCluster()
    cluster.wait_until_ready()
    load = prometheus = None
    try:
        prometheus = Prometheus(directory, scrapes(cluster.nodes.values()))
        chatctl = [PROGRAMS / "chatctl", "--tls-ca", cluster.authority, "--nodes", cluster.addresses()]
        socket_path = cluster.data / "n1" / "admin.sock"
        backup = [*chatctl, "backup", "--socket", socket_path, os.path.join(directory, "backup")]
        subprocess.run(backup, check=True, stdout=subprocess.DEVNULL)
        words = [*chatctl, "--output", "json", "verify", "--clients", "8", "--seconds", "600"]
        load = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

        wait_until("everything has data", lambda: everything_has_data(prometheus))
        count = len(list(dashboard_queries()))
        rules = len(prometheus.rules())
        print(f"{len(documented())} metrics, {rules} rules and {count} queries of dashboards have data")
        for node in cluster.nodes.values():
            scrape_is_clean(node)
        for interval in (15, 60):
            scraped_seldom(directory, cluster.nodes.values(), interval)
        print("they have data when Prometheus scrapes every 15 s or 60 s, too")
        wait_until("no alert", lambda: Not(prometheus.alerts()) if prometheus.alerts() else True)

        leader = prometheus.query("chat_raft_is_leader == 1")[0]["metric"]["chat_node"]
        names = [node["name"] for node in cluster.nodes.values()]
        first, second, third = [leader, *(name for name in names if name != leader)][:3]
        cluster.kill(first)
        changed = "sum(chat_raft_leader_changes_total) > 0"
        wait_until("another leader is counted", lambda: prometheus.query(changed))
        cluster.kill(second)
        wait_until("QuorumAtRisk", lambda: state(prometheus, "QuorumAtRisk", ["pending", "firing"]))
        wait_until("QuorumAtRisk fires", lambda: state(prometheus, "QuorumAtRisk", ["firing"]))
        wait_until("NodeNotReady fires", lambda: state(prometheus, "NodeNotReady", ["firing"]))
        assert "QuorumLost" not in prometheus.alerts(), prometheus.alerts()
        print("two nodes are lost: QuorumAtRisk and NodeNotReady fire")

        cluster.launch(first, second)
        for name in ("QuorumAtRisk", "NodeNotReady"):
            wait_until(f"{name} is over", lambda name=name: state(prometheus, name, [None]))
        print("they are back, and the alerts are over")

        load.send_signal(signal.SIGINT)
        verdict = json.loads(load.communicate(timeout=PATIENCE)[0])
        assert load.returncode == 0, verdict
        print(f"{verdict['acknowledged']} messages acknowledged meanwhile, none lost")

        cluster.kill(first, second, third)
        wait_until("QuorumLost fires", lambda: state(prometheus, "QuorumLost", ["firing"]))
        wait_until("NoLeader fires", lambda: state(prometheus, "NoLeader", ["firing"]))
        print("three nodes are lost: QuorumLost and NoLeader fire")
    except BaseException:
        print(f"--- cluster\n{cluster.tail()}")
        with open(os.path.join(directory, "prometheus.log"), encoding="utf-8", errors="replace") as file:
            print(f"--- Prometheus\n{''.join(file.readlines()[-40:])}")
        raise
    finally:
        if load is not None and load.poll() is None:
            load.kill()
            load.wait()
        if prometheus is not None:
            prometheus.close()
        cluster.stop()


def configmaps():
    """The dashboards in k8s/ are identical to those of Grafana."""
    command = [os.path.join(ROOT, "observability/configmaps")]
    made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    with open(os.path.join(ROOT, "k8s/dashboards.yaml"), encoding="utf-8") as file:
        if file.read() != made:
            raise AssertionError(
                "k8s/dashboards.yaml is not what is in observability/: "
                "run observability/configmaps > k8s/dashboards.yaml"
            )


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
