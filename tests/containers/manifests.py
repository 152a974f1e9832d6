"""Checks k8s/ and docs/examples/kubernetes/, and runs them with the package `kube`.

Needs the image, and root, as the kubelet does.
"""

import argparse
import glob
import os
import re
import time

import kubernetes_validate
import yaml
from kube import lint, mutants, scenario
from kube.fields import Manifests
from kube.left_out import LEFT_OUT
from kube.made import remove_all
from kube.statefulset import Cluster

import engine

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
# From the oldest version that the validator supports.
VERSIONS = [f"1.{minor}" for minor in range(25, 38)]


def texts(pattern):
    paths = sorted(glob.glob(os.path.join(ROOT, pattern)))
    if not paths:
        raise AssertionError(f"nothing at {pattern}")
    for path in paths:
        with open(path, encoding="utf-8") as file:
            yield os.path.relpath(path, ROOT), file.read()


def check_files():
    """Validates against the schemas of several Kubernetes versions, and runs the lint."""
    names = os.listdir(os.path.join(ROOT, "k8s"))
    others = [name for name in names if not name.endswith(".yaml") or name.startswith("kustomization")]
    if others:
        raise AssertionError(f"k8s/ is for `kubectl apply -f k8s/`: {others} do not belong there")
    documents = []
    for name, text in [*texts("k8s/*.yaml"), *texts("docs/examples/kubernetes/*.yaml")]:
        for document in yaml.safe_load_all(text):
            for version in VERSIONS:
                try:
                    kubernetes_validate.validate(document, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    where = ".".join(str(part) for part in error.absolute_path)
                    what = f"{name}: {document['kind']}, Kubernetes {version}"
                    raise AssertionError(f"{what}: {where}: {error.message}") from None
            if name.startswith("k8s/"):
                documents.append(document)
    found = lint.problems(documents)
    if found:
        raise AssertionError("\n".join(found))
    blind = lint.blind_checks(documents)
    if blind:
        raise AssertionError(f"these checks do not see what they are there for: {blind}")
    return len(documents)


def check_versions():
    """All images have the version of this build."""
    with open(os.path.join(ROOT, "Cargo.toml"), encoding="utf-8") as file:
        version = re.search(r'^version = "(.*)"', file.read(), re.MULTILINE)[1]
    for name, text in [*texts("k8s/*.yaml"), *texts("docs/examples/kubernetes/*.yaml"), *texts("README.md")]:
        for image in re.findall(r"quorum-chat:(\d+\.\d+\.\d+)", text):
            if image != version:
                raise AssertionError(f"{name} names quorum-chat:{image}, this is {version}")
    return f"quorum-chat:{version}"


def main():
    parser = argparse.ArgumentParser(description="Checks the Kubernetes manifests, and runs them.")
    parser.add_argument("--image", default="quorum-chat", help="the image to run (default: %(default)s)")
    parser.add_argument("--only-check", action="store_true", help="run nothing: schemas and lint")
    mutated = parser.add_mutually_exclusive_group()
    mutated.add_argument("--only-mutants", action="store_true", help="run only the broken manifests")
    mutated.add_argument("--no-mutants", action="store_true", help="run none of the broken manifests")
    options = parser.parse_args()
    began = time.monotonic()
    count, versions = check_files(), f"Kubernetes {VERSIONS[0]} to {VERSIONS[-1]}"
    print(f"{count} documents are valid for {versions}, and pass {len(lint.CHECKS)} checks")
    image = check_versions()
    if options.only_check:
        return
    # As the README describes.
    engine.docker("tag", options.image, image)
    remove_all()
    documents = [document for _, text in texts("k8s/*.yaml") for document in yaml.safe_load_all(text)]
    if not options.no_mutants:
        mutants.check(documents, image)
    if options.only_mutants:
        return
    manifests = Manifests(text for _, text in texts("k8s/*.yaml"))
    examples = Manifests(text for _, text in texts("docs/examples/kubernetes/*.yaml"))
    cluster = Cluster()
    try:
        scenario.execute(cluster, manifests, examples, image)
        for read in (manifests, examples):
            unused = read.unused(LEFT_OUT)
            if unused:
                raise AssertionError(f"not executed, and not named as left out: {unused}")
    except BaseException:
        scenario.report(cluster)
        raise
    finally:
        cluster.close()
    print(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
