// The binary of this platform, which npm installed as an optional dependency.
"use strict";

const { accessSync, constants } = require("node:fs");

const name = `opik-offline-${process.platform}-${process.arch}`;
const file = process.platform === "win32" ? "opik-offline.exe" : "opik-offline";

/** Returns its path: OPIK_OFFLINE_BINARY, or the one of this installation. Throws if there is none. */
exports.find = () => {
  const named = (process.env.OPIK_OFFLINE_BINARY || "").trim();
  if (named) {
    accessSync(named, constants.X_OK);
    return named;
  }
  try {
    return require.resolve(`${name}/bin/${file}`);
  } catch {
    throw new Error(`opik-offline has no binary for this platform, or it was not installed: ${name} is missing`);
  }
};
