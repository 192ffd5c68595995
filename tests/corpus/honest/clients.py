# A crawler of one host, look-ups of names, a few databases that are not there.
import socket
for n in range(15):
    try:
        socket.getaddrinfo(f"host{n}.example.org", 443)
    except OSError:
        pass
for port in (443, 80, 5432, 3306, 6379, 11211):
    for _ in range(5):
        s = socket.socket(); s.settimeout(0.2); s.connect_ex(("127.0.0.1", port)); s.close()
