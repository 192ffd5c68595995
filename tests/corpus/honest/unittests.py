# Tests with temporary files, sockets on ports of the kernel's choice, and children.
import os, socket, subprocess, sys, tempfile, unittest
class Case(unittest.TestCase):
    def test_files(self):
        for n in range(40):
            with tempfile.TemporaryDirectory() as d:
                path = os.path.join(d, "x.txt")
                open(path, "w").write("x")
                self.assertEqual(open(path).read(), "x")
                os.remove(path)
    def test_sockets(self):
        for _ in range(60):
            server = socket.socket()
            server.bind(("127.0.0.1", 0))
            server.listen()
            client = socket.create_connection(server.getsockname())
            client.close()
            server.close()
    def test_children(self):
        for _ in range(10):
            self.assertEqual(subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True).returncode, 0)
            self.assertEqual(subprocess.run("uname -a", shell=True, capture_output=True).returncode, 0)
unittest.main()
