"""Checks the image, and that a node writes only to its data directory."""

import json
import tomllib
from pathlib import Path

import engine
from cluster import LABEL, PATIENCE_S, Broken, expect
from engine import Container, EngineError, run, wait_until

USER = "65532:65532"
OWN_BYTES_MAX = 60_000_000


def check(cluster):
    """Checks the image, and runs every operation that writes files on a node of it. Returns a summary."""
    image = engine.inspect_image(cluster.image)
    config = image["Config"]
    expect("user", config["User"], USER)
    expect("entry point", config["Entrypoint"], ["/usr/local/bin/chatd"])
    expect("command", config["Cmd"], None)
    expect("stop signal", config["StopSignal"], "SIGTERM")
    expect("health check", config["Healthcheck"]["Test"], ["CMD", "/usr/local/bin/chatd", "health"])
    expect("volumes", list(config["Volumes"]), ["/data"])
    expect("ports", sorted(config["ExposedPorts"]), ["50051/tcp", "50052/tcp", "8080/tcp", "9464/tcp"])
    for program in ["chatd", "chatctl"]:
        version = once(cluster, f"/usr/local/bin/{program}", "--version").stdout.split()
        expect("version", version, [program, config["Labels"]["org.opencontainers.image.version"]])
    crates = check_sbom(cluster, config["Labels"]["org.opencontainers.image.version"])
    if once(cluster, "/bin/sh", "-c", "true").returncode == 0:
        raise Broken("there is a shell in the image")
    return f"{own_bytes(cluster) / 1e6:.1f} MB of our own, of {crates} crates; {writes(cluster)}"


def check_sbom(cluster, version):
    """The image contains its list of crates, and the list matches Cargo.lock. Returns the number of crates."""
    name = f"{cluster.project}-sbom"
    engine.docker("create", "--name", name, "--label", f"{LABEL}={cluster.project}", cluster.image)
    container = Container(name)
    try:
        bom = json.loads(container.read_file("/usr/share/quorum-chat/sbom.cdx.json")[0])
    finally:
        container.remove()
    expect("form of the SBOM", (bom["bomFormat"], bom["specVersion"]), ("CycloneDX", "1.5"))
    own = bom["metadata"]["component"]
    expect("what the SBOM is of", (own["name"], own["version"]), ("quorum-chat", version))
    locked = tomllib.loads((Path(__file__).parents[2] / "Cargo.lock").read_text())["package"]
    locked = {(crate["name"], crate["version"]): crate.get("checksum") for crate in locked}
    crates = bom["components"]
    for crate in crates:
        expect(f"checksum of {crate['name']}", crate["hashes"][0]["content"], locked[crate["name"], crate["version"]])
        if not crate["licenses"][0]["expression"]:
            raise Broken(f"{crate['name']} has no licence")
    missing = {"openraft", "rustls", "libsqlite3-sys", "libmimalloc-sys", "tonic"} - {crate["name"] for crate in crates}
    if missing or len({crate["purl"] for crate in crates}) != len(crates):
        raise Broken(f"the SBOM lacks {missing}, or has a crate twice")
    return len(crates)


def once(cluster, program, *words):
    """Runs a program of the image. The caller checks its exit code and output."""
    options = ["--rm", "--network", "none", "--label", f"{LABEL}={cluster.project}", "--entrypoint", program]
    return run("docker", "run", *options, cluster.image, *words, check=False)


def own_bytes(cluster):
    """The files that the image adds to its base image. The programs are stripped."""
    name = f"{cluster.project}-look"
    engine.docker("create", "--name", name, "--label", f"{LABEL}={cluster.project}", cluster.image)
    container = Container(name)
    try:
        contents = [container.read_file(f"/usr/local/bin/{program}")[0] for program in ["chatd", "chatctl"]]
    finally:
        container.remove()
    for content in contents:
        # The name of the section that holds the symbols.
        if b".symtab\0" in content:
            raise Broken("the programs are not stripped")
    size = sum(len(content) for content in contents)
    if size > OWN_BYTES_MAX:
        raise Broken(f"{size} bytes of our own, at most {OWN_BYTES_MAX} are wanted")
    return size


def writes(cluster):
    """Runs every operation that writes files on a node with a writable root. It writes only to its volume."""
    container = Container(f"{cluster.project}-writer")
    options = ["--cap-drop", "ALL", "--network", "none", "--label", f"{LABEL}={cluster.project}"]
    # The node also compares state digests. The engine checks its health every second, so that the test sees the result.
    options += ["--health-interval", "1s"]
    environment = {"CHAT_NAME": "writer", "CHAT_ADVERTISE": "localhost:50051", "CHAT_DIGEST_INTERVAL_S": "1"}
    engine.run_container(container.name, cluster.image, env=environment, options=options)
    try:
        wait_until("it is healthy, by the image's own check", lambda: container.health() == "healthy", PATIENCE_S)
        ready = ["/usr/local/bin/chatd", "health", "--ready"]
        wait_until("it is ready", lambda: container.exec(*ready, check=False).returncode == 0, PATIENCE_S)
        control = ["/usr/local/bin/chatctl", "--nodes", "localhost:50051"]
        container.exec(*control, "bench", "--clients", "8", "--seconds", "1")
        container.exec(*control, "snapshot", "--socket", "/data/admin.sock")
        container.exec(*control, "backup", "/data/backup", "--socket", "/data/admin.sock")
        size = len(container.read_file("/data/backup")[0])
        container.stop()
        expect("exit code", container.exit_code(), 0)
        # Start again from the existing files.
        container.start()
        wait_until("it is ready again", lambda: container.exec(*ready, check=False).returncode == 0, PATIENCE_S)
        changed = engine.docker("diff", container.name)
        expect("files that were changed outside of the volume", changed, "")
        return f"a snapshot, a backup of {size} bytes and a restart wrote to /data alone"
    except (Broken, EngineError, engine.Timeout) as error:
        raise Broken(f"{error}\n{container.logs(tail=40)}") from error
    finally:
        container.remove()
