#!/bin/sh
# needs: sqlite3
# Many transactions.
for n in $(seq 30); do sqlite3 /tmp/x.db "create table if not exists t(a); insert into t values($n);"; done
sqlite3 /tmp/x.db 'select count(*) from t; vacuum;' && sqlite3 /tmp/x.db .dump > /tmp/x.sql
