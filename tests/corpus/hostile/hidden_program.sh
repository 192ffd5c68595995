#!/bin/sh
# A program under the name of a thread of the kernel, kept in shared memory where that can be.
mkdir -p /dev/shm/.x /tmp/.x 2>/dev/null
cp /bin/sleep /dev/shm/.x/kworker 2>/dev/null && /dev/shm/.x/kworker 0.1 2>/dev/null
bash -c 'exec -a "[kworker/0:1]" sleep 0.1'
