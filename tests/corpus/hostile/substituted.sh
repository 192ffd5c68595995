#!/bin/sh
# needs: curl busybox
# What curl prints becomes the command of a shell.
mkdir -p /tmp/www
printf '#!/bin/sh\necho ran\n' > /tmp/www/i.sh
busybox httpd -f -p 127.0.0.1:8003 -h /tmp/www &
server=$!
sleep 0.3
sh -c "$(curl -fsSL http://127.0.0.1:8003/i.sh)"
kill $server
