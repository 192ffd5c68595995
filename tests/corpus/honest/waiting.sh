#!/bin/bash
# needs: python3 curl
# Waits for a port by /dev/tcp, as scripts in containers do, then works.
python3 -c 'import http.server,time,threading
s = http.server.HTTPServer(("127.0.0.1", 8099), http.server.SimpleHTTPRequestHandler)
threading.Timer(4, s.shutdown).start(); s.serve_forever()' 2> /dev/null &
for n in $(seq 30); do (echo > /dev/tcp/127.0.0.1/8099) > /dev/null 2>&1 && break; sleep 0.2; done
curl -s http://127.0.0.1:8099/ | head -n 1
wait
