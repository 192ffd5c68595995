# Runs one command after the other, each by a shell; it serves its own state on loopback.
import socket, subprocess
server = socket.create_server(("127.0.0.1", 0))
for command in ("ls -la", "git --version", "python3 --version", "echo x", "cat /proc/meminfo | head -1"):
    subprocess.run(["sh", "-c", command], capture_output=True)
socket.create_connection(server.getsockname()).close()
subprocess.run("uname -m", shell=True)
subprocess.run("id -u && pwd", shell=True)
