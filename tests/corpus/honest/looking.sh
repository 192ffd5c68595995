#!/bin/sh
# What programs ask before they start: kernel, limits, who they are.
cat /proc/sys/kernel/core_pattern > /tmp/out 2>/dev/null
sh -c 'cat /proc/sys/kernel/core_pattern > /tmp/out2' 2>/dev/null
uname -a >> /tmp/out; id -u >> /tmp/out; nproc >> /tmp/out; dmesg >> /tmp/out 2>&1
cat /proc/modules /proc/meminfo /proc/self/status >> /tmp/out 2>/dev/null
command -v ip > /dev/null && ip a >> /tmp/out 2>&1
find /tmp -type f -perm -u+x > /dev/null
mkdir -p /tmp/root/bin && cd /tmp && find root -perm -4000
true
