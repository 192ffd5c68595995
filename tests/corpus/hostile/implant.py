# Connects and runs one command after the other through popen, as an implant does.
import os, socket
server = socket.socket()
server.bind(("127.0.0.1", 8443))
server.listen()
s = socket.create_connection(("127.0.0.1", 8443))
for command in ("id", "uname -a", "hostname", "ps aux", "df", "env"):
    s.sendall(os.popen(command + " 2>&1").read().encode()[:512])
