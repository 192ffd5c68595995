# Formats sources in place, as formatters do.
import os
os.makedirs("/tmp/src/pkg", exist_ok=True)
for n in range(80):
    open(f"/tmp/src/pkg/m{n}.py", "w").write("x=1\n")
    open(f"/tmp/src/pkg/m{n}.md", "w").write("# x\n")
for name in os.listdir("/tmp/src/pkg"):
    path = os.path.join("/tmp/src/pkg", name)
    text = open(path).read()
    open(path, "w").write(text.replace("=", " = "))
