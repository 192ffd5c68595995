# A formatter and a licence tool over sources of many kinds, some by way of a new file.
import os
os.makedirs("/tmp/src")
kinds = ("py", "js", "css", "md", "c", "h", "html", "toml")
for n in range(80):
    open(f"/tmp/src/m{n}.{kinds[n % 8]}", "w").write("x  =  1\n" * 20)
for name in sorted(os.listdir("/tmp/src")):
    path = "/tmp/src/" + name
    text = open(path).read().replace("  ", " ")
    open(path, "w").write(text)
    with open(path + ".tmp", "w") as new:
        new.write("licence\n" + text)
    os.rename(path + ".tmp", path)
