#!/bin/sh
# Reads thousands of files.
find /usr/lib -type f -name '*.so*' 2>/dev/null | head -n 150 | xargs -P 4 -n 10 sha256sum > /tmp/sums
sort /tmp/sums | uniq | wc -l; grep -rl root /etc 2>/dev/null | wc -l; du -s /usr/share 2>/dev/null | cut -f1
