"""A replacement for `kubectl` that applies the calls of a program under test to the test's own cluster.

The program finds a script of that name on its PATH. The script sends its arguments to this process and prints the
response.
"""

import json
import os
import socketserver
import stat
import sys
import threading

SCRIPT = """#!{python}
import json, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({socket!r})
    connection.sendall(json.dumps(sys.argv[1:]).encode() + b"\\n")
    answer = json.loads(connection.makefile().read())
sys.stdout.write(answer["out"])
sys.stderr.write(answer["error"])
sys.exit(1 if answer["error"] else 0)
"""


class Kubectl:
    """Answers the script until `close`. `directory` must come first on the program's PATH."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.directory = os.path.join(cluster.node.directory, "kubectl")
        os.makedirs(self.directory)
        self.called = []
        # Pods that are recreated while the caller continues.
        self._making = []
        at = os.path.join(self.directory, "socket")
        kubectl = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                self.wfile.write(json.dumps(kubectl._answer(json.loads(self.rfile.readline()))).encode())

        self.server = socketserver.ThreadingUnixStreamServer(at, Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        script = os.path.join(self.directory, "kubectl")
        with open(script, "w", encoding="utf-8") as file:
            file.write(SCRIPT.format(python=sys.executable, socket=at))
        os.chmod(script, stat.S_IRWXU)

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        for thread in self._making:
            thread.join()

    def _answer(self, words):
        self.called.append(" ".join(words))
        if words == ["--namespace=default", "get", "pods", "--output=name"]:
            return {"out": "".join(f"pod/{pod.name}\n" for pod in self.cluster.all_pods), "error": ""}
        if words[:3] != ["--namespace=default", "delete", "pod"]:
            return {"out": "", "error": f"error: {words} is not known here\n"}
        name, *options = words[3:]
        (number,) = (number for number, pod in self.cluster.set.pods.items() if pod.name == name)
        if options == ["--grace-period=0", "--force", "--wait=false"]:
            thread = threading.Thread(target=self.cluster.set.replace, args=(number,), kwargs={"grace": 0})
            self._making.append(thread)
            thread.start()
        elif options:
            return {"out": "", "error": f"error: {options} are not known here\n"}
        else:
            self.cluster.set.replace(number)
        return {"out": f'pod "{name}" deleted\n', "error": ""}
