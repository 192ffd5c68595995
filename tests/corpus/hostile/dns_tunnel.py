# Data in the questions to a name server.
import os, socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(120):
    labels = b"".join(bytes([40]) + os.urandom(20).hex().encode() for _ in range(4)) + b"\x01t\x07example\x03org\x00"
    try:
        s.sendto(struct.pack(">HHHHHH", n, 256, 1, 0, 0, 0) + labels + b"\x00\x10\x00\x01", ("127.0.0.1", 53))
    except OSError:
        pass
