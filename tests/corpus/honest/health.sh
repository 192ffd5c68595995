#!/bin/sh
# needs: curl
# A check of health: which services of this machine answer, and what they say.
python3 - <<'END'
import socket
for port in (22, 25, 80, 110, 143, 443, 3306, 5432, 5672, 6379, 8000, 8080, 8443, 9090, 9200, 9300, 11211, 15672, 27017):
    s = socket.socket(); s.settimeout(0.1); s.connect_ex(("127.0.0.1", port)); s.close()
END
for port in 80 443 8080; do curl -s -m 1 -o /dev/null http://127.0.0.1:$port/health; done
curl -s -m 1 http://127.0.0.1:8130/list > /tmp/list
sleep 0.5
python3 - <<'END'
print("done")
END
