#!/bin/sh
# A script starts itself twice, until the depth is reached.
depth=$(cat /tmp/depth 2>/dev/null || echo 0)
echo $((depth + 1)) > /tmp/depth
[ "$depth" -gt 24 ] && exec sleep 1
sh "$0" &
sh "$0" &
wait
