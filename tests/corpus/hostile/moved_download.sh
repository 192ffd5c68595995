#!/bin/sh
# needs: curl busybox
# apex: --profile build
# A download gets another name before it runs.
mkdir -p /tmp/www
cp /bin/true /tmp/www/pay
busybox httpd -f -p 127.0.0.1:8004 -h /tmp/www &
server=$!
sleep 0.3
curl -s -o /tmp/x http://127.0.0.1:8004/pay
mv /tmp/x /tmp/gvfsd
chmod 700 /tmp/gvfsd
/tmp/gvfsd
kill $server
