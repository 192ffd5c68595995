#!/bin/sh
# needs: nginx curl
# A web server with workers, logs that are rotated, and clients.
mkdir -p /tmp/n/logs && cd /tmp/n
echo 'pid /tmp/n/pid; error_log /tmp/n/logs/error.log; worker_processes 4; events {} http { access_log /tmp/n/logs/access.log; client_body_temp_path /tmp/n/b; proxy_temp_path /tmp/n/p; fastcgi_temp_path /tmp/n/f; uwsgi_temp_path /tmp/n/u; scgi_temp_path /tmp/n/s; server { listen 127.0.0.1:8088; root /tmp/n; } }' > conf
echo hi > index.html
nginx -c /tmp/n/conf -g 'daemon off;' & server=$!
sleep 0.5
for n in $(seq 20); do curl -s http://127.0.0.1:8088/index.html > /dev/null; done
mv logs/access.log logs/access.log.1 && kill -USR1 $server; gzip logs/access.log.1
curl -s -o page.html http://127.0.0.1:8088/index.html; cat page.html
kill $server; wait
