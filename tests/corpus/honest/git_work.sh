#!/bin/sh
# needs: git
# A repository with many branches, packed and checked out again.
export HOME=/tmp/home GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
mkdir -p $HOME /tmp/r && cd /tmp/r && git init -q .
for n in $(seq 30); do echo $n > file$n.txt; git add -A; git commit -qm "file $n"; git branch branch$n; done
git gc -q --prune=now && git pack-refs --all && git checkout -q branch5 && git checkout -q branch30 && git clone -q /tmp/r /tmp/r2 && git fsck
git rm -q file*.txt && git commit -qm "none"
