"""A proxy between the browser and a node. It can be down, or represent a node of another version."""

import http.client
import http.server
import threading


class Front:
    """Forwards reads to the node at `target` (`host:port`) and answers calls with 503. Ends with `stop`.

    `mode` is one of "up", "down" (closes each connection), "502", "hang" and "portal" (a foreign page). With a
    `version`, it serves the files under that version, like a node with other files. It answers 404 for paths that end
    with `missing`."""

    def __init__(self, target):
        front = self
        self.target, self.mode, self.version, self.missing = target, "up", None, None
        self.released = threading.Event()
        self.own = None
        #: Requested paths.
        self.seen = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                front.seen.append(self.path)
                if front.mode == "down":
                    self.close_connection = True
                    return
                if front.mode == "hang":
                    front.released.wait(60)
                    self.close_connection = True
                    return
                if front.mode == "portal":
                    return self.answer(200, [("Content-Type", "text/html")], b"<!doctype html><title>portal</title>")
                if front.mode == "502" or (front.missing and self.path.endswith(front.missing)):
                    return self.answer(502 if front.mode == "502" else 404, [], b"")
                self.answer(*front.fetch(self.path, self.headers["Host"]))

            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.answer(503, [], b"")

            def answer(self, status, headers, body):
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_):
                # A browser may close the connection at any time.
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.own = self.fetch("/", "127.0.0.1")[2].decode().split("/assets/")[1][:16]

    def fetch(self, path, host):
        version = self.version or self.own
        if self.own:
            path = path.replace(version, self.own)
        connection = http.client.HTTPConnection(self.target)
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        body = answer.read()
        if self.own:
            body = body.replace(self.own.encode(), version.encode())
        own = ("content-length", "connection", "date")
        kept = [header for header in answer.getheaders() if header[0].lower() not in own]
        connection.close()
        return answer.status, kept, body

    def stop(self):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
