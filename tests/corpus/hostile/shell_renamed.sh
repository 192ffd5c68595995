#!/bin/sh
# apex: --profile build
# A shell under an innocent name.
cp /bin/sh /tmp/dbus-helper
/tmp/dbus-helper -c 'echo x'
