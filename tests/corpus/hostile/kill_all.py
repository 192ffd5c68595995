# Ends whatever there is.
import os, signal
for pid in range(3, 400):
    if pid != os.getpid() and pid != os.getppid():
        try:
            os.kill(pid, signal.SIGTERM)
        except OSError:
            pass
