#!/bin/sh
# needs: busybox
# apex: --profile build
# A script of applets, and another root made of them.
cd /tmp
busybox mkdir -p root/bin && busybox seq 1 20 | busybox awk '{print $1 * 2}' | busybox sort -n > n
for name in sh ls cat; do cp "$(command -v busybox)" root/bin/$name; done
root/bin/sh -c 'echo in' ; busybox sh -c 'echo x | busybox tr x y'
busybox find /tmp -name 'n*' -type f; busybox tar cf a.tar root n && busybox gzip a.tar
printf 'echo script\n' > s.sh; busybox sh s.sh; echo 'echo y' | busybox sh
busybox touch -r n s.sh; busybox id -u; busybox uname -m
