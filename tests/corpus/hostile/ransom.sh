#!/bin/sh
# needs: openssl
# The same by openssl, one process for each file.
mkdir /tmp/d
for n in 1 2 3 4 5 6 7 8 9 10 11 12; do echo secret$n > /tmp/d/$n.csv; done
for f in /tmp/d/*.csv; do
    openssl enc -aes-256-cbc -pbkdf2 -pass pass:x -in "$f" -out "$f.sealed" && rm "$f"
done
