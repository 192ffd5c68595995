# One port after the other.
import socket
for port in range(1, 200, 5):
    s = socket.socket()
    s.settimeout(0.1)
    s.connect_ex(("127.0.0.1", port))
    s.close()
