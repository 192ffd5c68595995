#!/bin/sh
# needs: gzip xz bzip2
# Each file is compressed and unpacked again.
mkdir -p /tmp/d/e /tmp/d/f
for n in $(seq 40); do seq 200 > /tmp/d/e/$n.csv; seq 200 > /tmp/d/f/$n.txt; done
gzip -r /tmp/d && gunzip -r /tmp/d && xz /tmp/d/e/*.csv && bzip2 /tmp/d/f/*.txt && ls /tmp/d/e | head -n 2
