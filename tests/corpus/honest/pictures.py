# Makes thumbnails: many pictures are read, others are written; some get a new name.
import os
os.makedirs("/tmp/pics/thumbs", exist_ok=True)
for n in range(60):
    open(f"/tmp/pics/{n}.jpg", "wb").write(os.urandom(500))
for n in range(60):
    data = open(f"/tmp/pics/{n}.jpg", "rb").read()
    open(f"/tmp/pics/thumbs/{n}.jpg", "wb").write(data[:100])
for n in range(60):
    os.rename(f"/tmp/pics/{n}.jpg", f"/tmp/pics/holiday-{n}.jpg")
