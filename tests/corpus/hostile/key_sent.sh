#!/bin/sh
# needs: curl
# One key leaves; nobody is there to take it.
mkdir -p /tmp/.ssh
echo key > /tmp/.ssh/id_rsa
curl -s -m 1 --data-binary @/tmp/.ssh/id_rsa http://127.0.0.1:7070/
true
