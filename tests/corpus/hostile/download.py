# Fetches a program from the network, makes it executable, and runs it.
import http.server, os, signal, subprocess, urllib.request
os.makedirs("/tmp/www", exist_ok=True)
open("/tmp/www/payload", "w").write("#!/bin/sh\necho ran\n")
# The server is another process: nobody who fetches from himself fetches from the network.
ready, done = os.pipe()
server = os.fork()
if server == 0:
    os.chdir("/tmp/www")
    at = http.server.HTTPServer(("127.0.0.1", 8000), http.server.SimpleHTTPRequestHandler)
    os.write(done, b"x")
    at.serve_forever()
os.read(ready, 1)
urllib.request.urlretrieve("http://127.0.0.1:8000/payload", "/tmp/update")
os.chmod("/tmp/update", 0o755)
try:
    subprocess.run(["/tmp/update"])
except OSError:
    pass
os.kill(server, signal.SIGKILL)
