#!/bin/sh
# needs: gpg git
# A store of passwords, one file each, kept by git; a key and its use.
export HOME=/tmp/h; mkdir -p $HOME/.gnupg $HOME/.password-store; chmod 700 $HOME/.gnupg
gpg --batch -q --passphrase '' --quick-gen-key 'me <me@x>' default default never 2>/dev/null || exit 0
cd $HOME/.password-store
for n in 1 2 3 4 5 6 7 8 9 10; do mkdir -p site$n; echo pw$n | gpg --batch -q --trust-model always -r me@x -e -o site$n/user.gpg; done
for n in 1 2 3 4 5 6 7 8 9 10; do gpg --batch -q -d site$n/user.gpg > /dev/null; done
git init -q . && git add -A && git -c user.name=a -c user.email=a@b commit -q -m x; find . -name '*.gpg' | sort > /tmp/list
