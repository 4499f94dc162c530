// An application in Node.js that is protected by `node --import opik-offline/auto` or its own call, driven like app.py:
//
//     traces N, sdkflush, status, flush SECONDS, protect [OPTIONS], unprotect, env, quit
//
// The SDK is found through NODE_PATH, which only `require` reads.

import { createRequire } from "node:module";
import readline from "node:readline";
import { pathToFileURL } from "node:url";

const opikOffline = await import(pathToFileURL(`${process.env.MODULE}/index.mjs`).href);
const { Opik } = createRequire(import.meta.url)("opik");
const client = new Opik({ projectName: "protected-test" });
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

const commands = {
  traces(number) {
    for (let n = 0; n < number; n++) {
      const input = { n };
      const trace = client.trace({ name: "protected", input, endTime: new Date() });
      say({ kind: "trace", id: trace.data.id, fields: { input } });
    }
  },
  sdkflush: () => client.flush(),
  status: () => opikOffline.status(),
  flush: (seconds) => opikOffline.flush(Number(seconds), { clients: [client] }),
  unprotect: () => opikOffline.unprotect(),
  protect: (options = "{}") => opikOffline.protect(JSON.parse(options)),
  env: () => ({ url: process.env.OPIK_URL_OVERRIDE }),
};

say({ done: "start" });
for await (const line of readline.createInterface({ input: process.stdin })) {
  const [command, ...words] = line.split(" ");
  if (command === "quit") break;
  say({ ...((await commands[command](...words)) ?? {}), done: command });
}
say({ done: "quit" });
// The test keeps the other end of the standard input open.
process.stdin.destroy();
