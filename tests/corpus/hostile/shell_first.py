# needs: bash
# The shell is started on a pair of sockets first, the connection that it is relayed to made afterwards.
import os, socket, time
server = socket.socket()
server.bind(("127.0.0.1", 5557))
server.listen()
if os.fork():
    other = server.accept()[0]
    other.sendall(b"id\nexit\n")
    other.recv(512)
    os.wait()
    os._exit(0)
server.close()
mine, theirs = socket.socketpair()
if os.fork() == 0:
    for fd in range(3):
        os.dup2(theirs.fileno(), fd)
    os.execv("/bin/bash", ["bash", "--norc"])
theirs.close()
time.sleep(0.2)
out = socket.create_connection(("127.0.0.1", 5557))
mine.sendall(out.recv(512))
out.sendall(mine.recv(512))
