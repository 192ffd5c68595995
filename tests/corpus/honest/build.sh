#!/bin/sh
# needs: make gcc
# apex: --profile build
# A parallel build of many files by make and gcc.
mkdir /tmp/b && cd /tmp/b || exit 1
for n in $(seq 24); do echo "int f$n(int x) { return x + $n; }" > f$n.c; done
echo 'int main(void) { return 0; }' > main.c
printf 'OBJS := $(patsubst %%.c,%%.o,$(wildcard *.c))\nprog: $(OBJS)\n\tgcc -o $@ $^\n%%.o: %%.c\n\tgcc -O2 -c -o $@ $<\nclean:\n\trm -f *.o prog\n' > Makefile
make -s -j8 && make -s clean && make -s -j8 && ls prog
