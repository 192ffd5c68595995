#!/bin/sh
# Texts are sorted, tables cleaned, songs tagged: many files of one kind, by whoever was told to.
mkdir /tmp/t && cd /tmp/t
for n in $(seq 1 25); do printf 'b\na\n' > $n.txt; printf 'x,y\n' > $n.csv; head -c 300 /dev/zero > $n.mp3; done
for f in *.txt; do sort $f > $f.new; mv $f.new $f; done
python3 -c 'import glob
for name in glob.glob("*.csv"):
    rows = open(name).read()
    open(name, "w").write(rows.upper())
for name in glob.glob("*.mp3"):
    with open(name, "r+b") as song:
        song.write(b"ID3")'
sed -i s/a/c/ *.txt *.csv
