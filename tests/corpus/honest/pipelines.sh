#!/bin/bash
# needs: bash
# apex: --profile build
# Twenty pipelines at a time, functions that call themselves in subshells, many short commands.
cd /tmp
for i in $(seq 1 100); do (echo $i | sed s/1/2/ | tr 2 3 | sort | uniq -c > o.$((i % 7))) & [ $((i % 20)) = 0 ] && wait; done; wait
fact() { if [ $1 -le 1 ]; then echo 1; else echo $(($1 * $(fact $(($1 - 1))))); fi; }
for i in 1 2 3; do fact 18; done
g() { [ $1 -gt 0 ] && (g $(($1 - 1))); }; g 22
seq 1 100 | xargs -P8 -I{} sh -c 'test {} -gt 0'
