"""The application: GET /rows gives all rows, POST /rows adds the body as one; 201 means that it is committed.

Environment: AP_PORT, PSQL (the program psql), and what psql itself reads (PGHOST, PGPORT, PGUSER).
`server.py ready` ends with 0 when it answers.
"""

import os
import subprocess
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = int(os.environ["AP_PORT"])


def sql(query, **values):
    """The rows of a query; `:'name'` in it is a value, quoted by psql."""
    args = [os.environ["PSQL"], "-XqAt", "-v", "ON_ERROR_STOP=1"]
    for name, value in values.items():
        args += ["-v", f"{name}={value}"]
    return subprocess.run(args + ["postgres"], input=query, capture_output=True, text=True, check=True).stdout


class Rows(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply(200, lambda: sql("select text from rows order by id"))

    def do_POST(self):
        row = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.reply(201, lambda: sql("insert into rows (text) values (:'row')", row=row))

    def reply(self, good, work):
        code, text = 404, "only /rows\n"
        if self.path == "/rows":
            try:
                code, text = good, work()
            except subprocess.CalledProcessError as e:
                code, text = 503, e.stderr
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())


if sys.argv[1:] == ["ready"]:
    urllib.request.urlopen(f"http://127.0.0.1:{PORT}/rows", timeout=5)
else:
    sql("create table if not exists rows (id serial primary key, text text not null)")
    ThreadingHTTPServer(("127.0.0.1", PORT), Rows).serve_forever()
