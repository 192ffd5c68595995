# The settings of all projects.
import glob, os
for n in range(7):
    os.makedirs(f"/tmp/projects/p{n}")
    open(f"/tmp/projects/p{n}/.env", "w").write("DB_PASSWORD=x")
print(len([open(name).read() for name in glob.glob("/tmp/projects/*/.env")]))
