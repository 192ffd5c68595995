# A test of a client: it talks to its own server, writes what it got, makes it executable and runs scripts that it wrote.
# apex: --profile build
import http.server, os, socket, subprocess, threading, urllib.request
os.makedirs("/tmp/www")
open("/tmp/www/a", "w").write("echo a\n")
os.chdir("/tmp/www")
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/a"
open("/tmp/x.sh", "wb").write(urllib.request.urlopen(url).read())
subprocess.run(["sh", "/tmp/x.sh"])
open("/tmp/tool", "w").write("#!/bin/sh\necho tool\n")
os.chmod("/tmp/tool", 0o755)
subprocess.run(["/tmp/tool"])
# A monitor is tried on forty servers.
servers = [socket.create_server(("127.0.0.1", 9100 + n)) for n in range(40)]
for n in range(40):
    socket.create_connection(("127.0.0.1", 9100 + n)).close()
