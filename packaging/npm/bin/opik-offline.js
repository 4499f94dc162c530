#!/usr/bin/env node
// Runs the binary of this platform. Installation runs no script and downloads nothing else. Signals and the exit code are
// passed through, because a supervisor sees only this process.
"use strict";

const { spawn } = require("node:child_process");
const { constants } = require("node:os");
const { find } = require("../lib/binary.cjs");

let binary;
try {
  binary = find();
} catch (error) {
  console.error(`error: ${error.message}`);
  console.error("hint: install without --omit=optional; for other platforms, build it with `cargo install`");
  process.exit(1);
}

const child = spawn(binary, process.argv.slice(2), { stdio: "inherit" });
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
  process.on(signal, () => child.kill(signal));
}
child.on("error", (error) => {
  console.error(`error: cannot run ${binary}: ${error.message}`);
  process.exit(1);
});
child.on("exit", (code, signal) => process.exit(signal === null ? code : 128 + constants.signals[signal]));
