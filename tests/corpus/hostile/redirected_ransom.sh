#!/bin/sh
# needs: openssl
# The tool sees no name: the shell opens the files; each ending is another one.
mkdir /tmp/d
cd /tmp/d
for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do echo secret$n > $n.csv; done
for f in *.csv; do
    openssl enc -aes-256-cbc -pbkdf2 -pass pass:x < $f > .t
    mv .t $f.x$f
    rm -f $f
done
