# A program connects and becomes a shell; the other end is in the same sandbox.
import os, socket, threading
server = socket.socket()
server.bind(("127.0.0.1", 0))
server.listen()
def other_end():
    peer, _ = server.accept()
    peer.sendall(b"id\nexit\n")
    while peer.recv(4096):
        pass
threading.Thread(target=other_end, daemon=True).start()
pid = os.fork()
if pid == 0:
    s = socket.create_connection(server.getsockname())
    for fd in (0, 1, 2):
        os.dup2(s.fileno(), fd)
    os.execv("/bin/sh", ["sh", "-i"])
os.waitpid(pid, 0)
