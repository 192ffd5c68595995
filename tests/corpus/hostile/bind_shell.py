# Listens and gives a shell to whoever comes.
import os, socket, subprocess, threading
server = socket.socket()
server.bind(("0.0.0.0", 31337))
server.listen()
def visitor():
    s = socket.create_connection(("127.0.0.1", 31337))
    s.sendall(b"echo in\nexit\n")
    while s.recv(4096):
        pass
threading.Thread(target=visitor, daemon=True).start()
peer, _ = server.accept()
subprocess.run(["/bin/bash", "--norc", "-i"], stdin=peer, stdout=peer, stderr=peer)
