# One key a second, among other work.
import os, time
home = os.environ.get("HOME", "/root")
for name in (".ssh/id_rsa", ".aws/credentials", ".kube/config", ".git-credentials"):
    try:
        open(os.path.join(home, name)).read()
    except OSError:
        pass
    for n in range(5):
        open(f"/tmp/work{n}", "w").write("x")
        open(f"/tmp/work{n}").read()
    time.sleep(0.4)
