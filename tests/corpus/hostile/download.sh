#!/bin/sh
# needs: busybox python3
# Fetches a script and runs it by its name.
mkdir -p /tmp/www
echo 'echo ran' > /tmp/www/x.sh
busybox httpd -f -p 127.0.0.1:8001 -h /tmp/www &
server=$!
sleep 0.3
cd /tmp
python3 -c 'import urllib.request; urllib.request.urlretrieve("http://127.0.0.1:8001/x.sh", "/tmp/setup.sh")'
sh setup.sh
kill $server
