# A tool for many projects: their settings and all their sources.
import os
for p in range(8):
    os.makedirs(f"/tmp/w/p{p}/src")
    open(f"/tmp/w/p{p}/.env", "w").write("A=1")
    for n in range(30):
        open(f"/tmp/w/p{p}/src/{n}.ts", "w").write("export {}")
for p in range(8):
    for name in (".env", ".env.local", ".env.production", *(f"src/{n}.ts" for n in range(30))):
        try:
            open(f"/tmp/w/p{p}/{name}").read()
        except OSError:
            pass
