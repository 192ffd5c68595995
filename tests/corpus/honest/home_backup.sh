#!/bin/sh
# needs: tar openssl
# Everything of a home goes into an archive, which is encrypted; a copy; old dumps are encrypted and removed.
h=/tmp/home/user; mkdir -p $h/.ssh $h/.aws $h/.kube $h/.docker $h/docs
for f in .ssh/id_rsa .ssh/id_ed25519 .ssh/id_ecdsa .aws/credentials .kube/config .docker/config.json .netrc .npmrc .git-credentials .pgpass; do echo x > $h/$f; done
for n in 1 2 3 4 5 6 7 8; do echo $n > $h/docs/$n.txt; done
tar czf /tmp/home.tgz -C /tmp home && cp -a /tmp/home /tmp/copy
openssl enc -aes-256-cbc -pbkdf2 -pass pass:x -in /tmp/home.tgz -out /tmp/home.tgz.enc && rm /tmp/home.tgz
for n in 1 2 3 4; do echo dump > /tmp/d$n.sql; openssl enc -aes-256-cbc -pbkdf2 -pass pass:x -in /tmp/d$n.sql -out /tmp/d$n.sql.enc; rm /tmp/d$n.sql; done
