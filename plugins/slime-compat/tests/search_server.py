"""A search service that speaks the protocol of Search-R1's retriever, on the loopback interface: `python search_server.py PORT`.

`POST /retrieve {"queries": [...], "topk": k}` is answered by `{"result": [[{"contents": '"title"\\ntext'}, …], …]}`: for each
query the documents that share most words with it.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DOCUMENTS = (
    '"Rain"\nThe rain in Spain stays mainly in the plain.',
    '"Snow"\nSnow lies on the mountains of Spain in winter.',
    '"Sea"\nThe sea is south of the plain.',
)


class Search(BaseHTTPRequestHandler):
    """Answers searches, and prints each query as one line."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        result = [[{"contents": text} for text in best(query, asked["topk"])] for query in asked["queries"]]
        body = json.dumps({"result": result}).encode()
        print(*asked["queries"], sep="\n", flush=True)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing else."""


def best(query: str, count: int) -> list[str]:
    words = set(query.lower().split())
    return sorted(DOCUMENTS, key=lambda text: -len(words & set(text.lower().split())))[:count]


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Search)
    print("ready", server.server_port, flush=True)
    server.serve_forever()
