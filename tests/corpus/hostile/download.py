# Fetches a program from the network, makes it executable, and runs it.
import http.server, os, subprocess, threading, urllib.request
os.makedirs("/tmp/www", exist_ok=True)
open("/tmp/www/payload", "w").write("#!/bin/sh\necho ran\n")
os.chdir("/tmp/www")
server = http.server.HTTPServer(("127.0.0.1", 8000), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
urllib.request.urlretrieve("http://127.0.0.1:8000/payload", "/tmp/update")
os.chmod("/tmp/update", 0o755)
try:
    subprocess.run(["/tmp/update"])
except OSError:
    pass
