#!/bin/sh
# needs: busybox
# A download that goes into a shell, both by applets.
mkdir -p /tmp/www
echo 'echo ran' > /tmp/www/i.sh
busybox httpd -f -p 127.0.0.1:8002 -h /tmp/www &
server=$!
sleep 0.3
busybox wget -qO- http://127.0.0.1:8002/i.sh | busybox sh
kill $server
