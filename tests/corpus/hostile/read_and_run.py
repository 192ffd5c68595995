# A shell with a command, which runs each line it reads from the connection.
import os, socket
server = socket.socket()
server.bind(("127.0.0.1", 5558))
server.listen()
if os.fork() == 0:
    server.accept()[0].sendall(b"id\nexit\n")
    os._exit(0)
s = socket.create_connection(("127.0.0.1", 5558))
for fd in range(3):
    os.dup2(s.fileno(), fd)
os.execv("/bin/sh", ["sh", "-c", 'while read c; do [ "$c" = exit ] && exit; eval "$c"; done'])
