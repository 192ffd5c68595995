#!/bin/bash
# Pipes, sorting, searching and text by the thousand.
cd /tmp || exit 1
for n in $(seq 300); do echo "$RANDOM $n"; done | sort -n | awk '{s+=$1} END {print s}'
seq 20000 | shuf | sort -n | tail -n 1
for f in $(seq 40); do echo "$f" > "note $f.txt"; mv "note $f.txt" "note-$f.txt"; chmod 644 "note-$f.txt"; done
ls | wc -l; cat note-*.txt | md5sum; printf 'echo from a file\n' > run.sh; chmod +x run.sh; sh run.sh; echo aGVsbG8K | base64 -d
