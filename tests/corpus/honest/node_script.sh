#!/bin/sh
# needs: node
# apex: --profile node
# A server and its client in one process, workers beside it.
cat > /tmp/x.js <<'END'
const http = require('http'), { Worker } = require('worker_threads'), { execSync } = require('child_process');
const server = http.createServer((q, r) => r.end('ok')).listen(0, '127.0.0.1', async () => {
  for (let n = 0; n < 50; n++) await new Promise(d => http.get({ port: server.address().port }, r => { r.resume(); r.on('end', d); }));
  for (let n = 0; n < 4; n++) new Worker('1', { eval: true });
  console.log(execSync('uname -m').toString()); server.close();
});
END
node /tmp/x.js
