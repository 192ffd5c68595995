#!/bin/sh
# needs: perl
# The same change in every file of a tree, with and without backups.
mkdir -p /tmp/t/a /tmp/t/b
for n in $(seq 60); do echo "old $n" > /tmp/t/a/$n.txt; echo "old $n" > /tmp/t/b/$n.md; done
sed -i s/old/new/ /tmp/t/a/*.txt /tmp/t/b/*.md
sed -i.bak s/new/newer/ /tmp/t/a/*.txt
perl -pi -e 's/newer/newest/' /tmp/t/a/*.txt
grep -rl newest /tmp/t | wc -l
