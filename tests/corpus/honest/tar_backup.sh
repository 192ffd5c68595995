#!/bin/sh
# needs: tar
# A home directory with keys in it is packed, unpacked and compared.
mkdir -p /tmp/home/.ssh /tmp/home/.aws /tmp/home/.kube /tmp/home/docs
echo key > /tmp/home/.ssh/id_ed25519; echo c > /tmp/home/.aws/credentials; echo k > /tmp/home/.kube/config
for n in $(seq 200); do echo "text $n" > /tmp/home/docs/$n.txt; done
tar czf /tmp/home.tgz -C /tmp home && mkdir /tmp/restore && tar xzf /tmp/home.tgz -C /tmp/restore && diff -r /tmp/home /tmp/restore/home && cp -a /tmp/home /tmp/copy
