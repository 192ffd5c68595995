#!/bin/sh
# needs: curl gcc make
# apex: --profile build
# A source is fetched, configured, built and run; what configure asks, and programs that it tries.
mkdir -p /tmp/www/p-1 && cd /tmp/www
printf 'int main(void) { return 0; }\n' > p-1/p.c
printf 'p: p.c\n\tgcc -o p p.c\n' > p-1/Makefile
cat > p-1/configure <<'END'
#!/bin/sh
uname -a > config.log; uname -m >> config.log; id -u >> config.log; hostname >> config.log
for n in 1 2 3; do echo 'int main(void) { return 0; }' > conftest.c; gcc -o conftest conftest.c && ./conftest; rm -f conftest*; done
echo 'echo status' > config.status; chmod +x ./config.status; ./config.status
END
chmod +x p-1/configure; tar czf p.tgz p-1
mkdir -p /tmp/b && cd /tmp/b
curl -s -o p.tgz file:///tmp/www/p.tgz
curl -s -m 1 -o /dev/null http://127.0.0.1:8131/
tar xzf p.tgz && cd p-1 && ./configure && make -s && ./p && cp p /tmp/b/installed && /tmp/b/installed
