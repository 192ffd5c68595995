# A server of files and many requests to it.
import http.server, os, threading, urllib.request
os.makedirs("/tmp/www", exist_ok=True); os.chdir("/tmp/www")
open("index.html", "w").write("hello")
class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Quiet)
threading.Thread(target=server.serve_forever, daemon=True).start()
for n in range(200):
    data = urllib.request.urlopen("http://127.0.0.1:8080/index.html").read()
    open(f"/tmp/www/copy{n}.html", "wb").write(data)
