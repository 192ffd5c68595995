#!/bin/bash
# needs: python3
# A shell's own connection; commands come from the other end.
python3 -c '
import socket
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("127.0.0.1", 9001)); s.listen()
open("/tmp/ready", "w")
c, _ = s.accept(); c.sendall(b"id\nuname -a\ncat /etc/passwd\n"); c.shutdown(socket.SHUT_WR)
while c.recv(4096): pass
' &
until [ -e /tmp/ready ]; do sleep 0.1; done
exec 5<> /dev/tcp/127.0.0.1/9001
while read -r line <&5; do $line >&5 2>&1; done
exec 5>&-
wait
