#!/bin/sh
# Tests in the command line, with sockets and processes; scripts whose names end like those of known tools.
python3 -c 'import socket, subprocess
a, b = socket.socketpair(); a.sendall(b"x"); subprocess.run(["true"]); print(b.recv(1))'
cd /tmp
for name in rules modules false else titles; do echo 'echo ok' > $name.sh; sh $name.sh; done
python3 - <<END
import os, socket
print(socket.gethostname(), os.getpid())
END
