# A web server runs what it is asked by a shell; somebody asks.
import os, socket, subprocess
server = socket.socket()
server.bind(("127.0.0.1", 5554))
server.listen()
if os.fork() == 0:
    client = socket.create_connection(("127.0.0.1", 5554))
    client.sendall(b"id;cat /etc/passwd")
    client.recv(4096)
    os._exit(0)
asked = server.accept()[0]
asked.sendall(subprocess.run(asked.recv(512).decode(), shell=True, capture_output=True).stdout[:512])
os.wait()
