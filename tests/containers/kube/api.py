"""An API server that can only create Secrets, for pods whose account is bound to a Role that allows it.

The pods reach it at the gateway of their network over TLS. The certificate authority is mounted into the pods with
their token, as the kubelet does it.
"""

import http.server
import json
import os
import secrets
import ssl
import threading

from engine import docker

from .fields import ManifestError
from .made import LABEL


class Api:
    def __init__(self, node, address, image):
        self.node, self.address = node, address
        self.directory = os.path.join(node.directory, "api")
        os.makedirs(self.directory)
        # Accounts by token.
        self.tokens = {}
        # Verbs for Secrets by account.
        self.rights = {}
        # All requests, as (account, status).
        self.asked = []
        self._issue(image)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._path("api.pem"), self._path("api.key"))
        self.server = http.server.ThreadingHTTPServer((address, 0), _handler(self))
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def bind(self, manifests):
        """Records the rights that the Roles and RoleBindings grant."""
        roles = {}
        for role in manifests.of_kind("Role"):
            for rule in role.each("rules"):
                if rule.need("apiGroups") != [""] or rule.need("resources") != ["secrets"]:
                    raise ManifestError(f"{rule.path}: only Secrets are known here")
                roles[role.value["metadata"]["name"]] = set(rule.need("verbs"))
        for binding in manifests.of_kind("RoleBinding"):
            reference = binding.at("roleRef")
            if (reference.need("apiGroup"), reference.need("kind")) != ("rbac.authorization.k8s.io", "Role"):
                raise ManifestError(f"{reference.path}: only Roles are known here")
            for subject in binding.each("subjects"):
                if subject.need("kind") != "ServiceAccount":
                    raise ManifestError(f"{subject.path}: only ServiceAccounts are known here")
                self.rights[subject.need("name")] = roles[reference.need("name")]

    def mount(self, account, namespace):
        """The directory that is mounted into a pod of this account."""
        token = secrets.token_hex(16)
        self.tokens[token] = account
        directory = os.path.join(self.directory, token[:8])
        os.makedirs(directory)
        with open(self._path("ca.pem"), encoding="ascii") as file:
            authority = file.read()
        for name, text in (("token", token), ("namespace", namespace), ("ca.crt", authority)):
            path = os.path.join(directory, name)
            with open(path, "w", encoding="ascii") as file:
                file.write(text)
            os.chmod(path, 0o644)
        os.chmod(directory, 0o755)
        return directory

    def env(self):
        return {"KUBERNETES_SERVICE_HOST": self.address, "KUBERNETES_SERVICE_PORT": str(self.port)}

    def answer(self, path, token, body):
        """Status and response object for `POST path`."""
        account = self.tokens.get(token)
        if account is None:
            return 401, {"message": "Unauthorized"}
        if path != "/api/v1/namespaces/default/secrets":
            return 404, {"message": f"{path} is not known here"}
        if "create" not in self.rights.get(account, ()):
            return 403, {"message": f"secrets is forbidden: {account} cannot create"}
        name = body["metadata"]["name"]
        with self.node.changed:
            if name in self.node.secrets:
                return 409, {"message": f'secrets "{name}" already exists'}
            self.node.secrets[name] = body["data"]
            self.node.changed.notify_all()
        return 201, body

    def _path(self, name):
        return os.path.join(self.directory, name)

    def _issue(self, image):
        """Issues a certificate for this address with the image's own tools. They run as root, like this process, which
        owns the files."""
        words = ["run", "--rm", "--label", LABEL, "--user", "0", "--network", "none"]
        words += ["--volume", f"{self.directory}:/certs"]
        docker(*words, "--entrypoint", "/usr/local/bin/chatctl", image, "certs", "/certs", f"api={self.address}")


def _handler(api):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, answer = api.answer(self.path, token, body)
            api.asked.append((api.tokens.get(token), status))
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *words):
            """Logs nothing because `asked` records the requests."""

    return Handler
