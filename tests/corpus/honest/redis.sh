#!/bin/sh
# needs: redis-server redis-benchmark
# A server under load.
redis-server --port 6399 --save '' --daemonize no > /dev/null &
server=$!
for n in 1 2 3 4 5 6 7 8 9; do redis-cli -p 6399 ping > /dev/null 2>&1 && break; sleep 0.2; done
redis-benchmark -p 6399 -q -n 3000 -c 30 -t set,get
redis-cli -p 6399 config set dir /tmp > /dev/null; redis-cli -p 6399 save
kill $server; wait
