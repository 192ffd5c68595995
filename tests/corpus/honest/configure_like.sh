#!/bin/bash
# needs: gcc
# apex: --profile build
# What configure scripts do: hundreds of short commands, subshells, small programs that are compiled and run.
mkdir /tmp/c && cd /tmp/c || exit 1
for n in $(seq 150); do x=$(echo "$n" | sed 's/1/2/'); y=$(expr "$x" + 1); ( ( echo "$y" > conftest.$n ) ); rm -f conftest.$n; done
for n in $(seq 6); do
  echo 'int main(void) { return 0; }' > conftest.c
  gcc -o conftest conftest.c && ./conftest; rm -f conftest conftest.c
done
uname -m; uname -r; hostname; id -u; echo "$y"
