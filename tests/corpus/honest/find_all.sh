#!/bin/sh
# Looks at every file that there is.
find / -type f 2>/dev/null | wc -l
find / -name '*.conf' -size +1k 2>/dev/null | wc -l
