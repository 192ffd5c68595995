# Speaks to a pool on a usual port for it; nobody answers.
import socket
for _ in range(3):
    s = socket.socket()
    try:
        s.connect(("192.0.2.7", 3333))
    except OSError:
        pass
