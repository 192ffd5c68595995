#!/bin/bash
# A program under a harmless name with a miner's arguments.
exec -a worker sh -c 'sleep 0.1' -o stratum+tcp://pool.example.org:443 -u 44AbC -p x
