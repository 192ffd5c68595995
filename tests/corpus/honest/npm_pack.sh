#!/bin/sh
# needs: npm
# apex: --profile node
# A package with a script of its own is packed and installed without a network.
export HOME=/tmp/h npm_config_cache=/tmp/c npm_config_offline=true npm_config_update_notifier=false npm_config_audit=false
mkdir -p /tmp/h /tmp/p /tmp/app && cd /tmp/p
echo '{"name":"p","version":"1.0.0","bin":{"p":"p.js"},"scripts":{"postinstall":"node p.js"}}' > package.json
printf '#!/usr/bin/env node\nconsole.log(1)\n' > p.js
npm pack --silent && cd /tmp/app && echo '{"name":"app","version":"1.0.0"}' > package.json && npm install --silent /tmp/p/p-1.0.0.tgz && ls node_modules
