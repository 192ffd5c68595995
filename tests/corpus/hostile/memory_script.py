# needs: perl
# A script that lies in memory alone.
import os
fd = os.memfd_create("s", 0)
os.write(fd, b"print 1;")
if os.fork() == 0:
    os.execvp("perl", ["perl", f"/proc/self/fd/{fd}"])
os.wait()
