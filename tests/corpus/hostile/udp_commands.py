# Each datagram is a command, its answer another datagram.
import os, socket, subprocess
master = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
master.bind(("127.0.0.1", 9001))
if os.fork() == 0:
    master.close()
    slave = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    slave.sendto(b"hi", ("127.0.0.1", 9001))
    for _ in range(3):
        command, other = slave.recvfrom(512)
        slave.sendto(subprocess.run(command.decode(), shell=True, capture_output=True).stdout, other)
    os._exit(0)
for command in (b"id\n", b"uname -a\n", b"whoami\n"):
    _, other = master.recvfrom(4096)
    master.sendto(command, other)
os.wait()
