# A monitor reads everything that there is to know of each process.
import os, subprocess
children = [subprocess.Popen(["sleep", "2"]) for _ in range(10)]
for child in children:
    for name in ("stat", "statm", "status", "cmdline", "environ", "io", "limits"):
        try:
            open(f"/proc/{child.pid}/{name}").read()
        except OSError:
            pass
for child in children:
    child.kill()
    child.wait()
