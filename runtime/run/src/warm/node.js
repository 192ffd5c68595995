// Waits, started and ready, for what it is to run: the words of a command line for node, a NUL behind each, from the descriptor
// that the first argument names. What is run finds the interpreter as if it had been started with them.
"use strict";
(() => {
  const fs = require("fs");
  const path = require("path");
  const fd = Number(process.argv[1]);
  fs.writeSync(fd, "r");
  const room = Buffer.alloc(1 << 18);
  const count = fs.readSync(fd, room);
  fs.closeSync(fd);
  if (count === 0) process.exit(125); // Nobody asks any more.
  const argv = room.toString("utf8", 0, count).split("\0").slice(0, -1);
  const rest = argv.slice(1);
  process.execArgv = [];
  if (rest[0] === "-e" && rest.length > 1) {
    process.execArgv = ["-e", rest[1]];
    process.argv = [process.execPath, ...rest.slice(2)];
    require("vm").runInThisContext(rest[1], { filename: "[eval]" });
  } else if (rest.length > 0 && !rest[0].startsWith("-") && fs.existsSync(rest[0])) {
    process.argv = [process.execPath, path.resolve(rest[0]), ...rest.slice(1)];
    require("module").runMain(process.argv[1]);
  } else {
    // Options change how an interpreter starts: this one has.
    const { status, signal } = require("child_process").spawnSync(process.execPath, rest, { stdio: "inherit", argv0: argv[0] });
    if (signal) process.kill(process.pid, signal);
    process.exit(status === null ? 125 : status);
  }
})();
