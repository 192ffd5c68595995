# Sources of many kinds are encrypted where they lie; their names stay.
import os
os.makedirs("/tmp/code")
for n in range(40):
    open("/tmp/code/m%d.%s" % (n, ("py", "c", "conf", "h")[n % 4]), "w").write("x = 1\n" * 50)
for name in os.listdir("/tmp/code"):
    fd = os.open("/tmp/code/" + name, os.O_RDWR)
    os.pwrite(fd, os.urandom(300), 0)
    os.close(fd)
