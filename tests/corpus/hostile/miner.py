# Speaks to a pool on a usual port for it; nobody answers.
import socket
for _ in range(3):
    s = socket.socket()
    try:
        s.connect(("127.0.0.1", 3333))
    except OSError:
        pass
