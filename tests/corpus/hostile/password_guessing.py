# The same log-in service again and again.
import socket
for _ in range(40):
    s = socket.socket()
    s.connect_ex(("127.0.0.1", 22))
    s.close()
