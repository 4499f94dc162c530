// Leads this process to the one background agent of its user and server.
//
// The TypeScript SDK reads OPIK_URL_OVERRIDE when a client is made, so protect() is synchronous and comes first: `import
// "opik-offline/auto"` before everything else, or `node --import opik-offline/auto app.mjs`. Nothing is thrown unless `strict`
// was asked for. A timer, which keeps no process alive, looks after the agent.
"use strict";

const { spawnSync } = require("node:child_process");
const { createHmac, randomBytes, timingSafeEqual } = require("node:crypto");
const { closeSync, constants, fstatSync, openSync, readFileSync } = require("node:fs");
const http = require("node:http");
const { dirname, join } = require("node:path");
const { find } = require("./binary.cjs");

const IDLE_EXIT = "10m";
const START_TIMEOUT_MS = 90_000;
const ANSWER_TIMEOUT_MS = 5_000;
const FLUSH_GRACE_MS = 10_000;
const WATCH_INTERVAL_MS = 10_000;
const TIMER_MS_MAX = 2 ** 31 - 1;
const ANSWER_CHARACTERS_MAX = 1 << 20;
const TOKEN_PREFIX = "/-/token/";

class ProtectionError extends Error {
  constructor(message) {
    super(message);
    this.name = "ProtectionError";
  }
}

/** What is known of the agent; null if this process is not protected. */
let agent = null;
/** Variables as they were before; undefined for one that was not set. */
let before = new Map();
let started = {};
let timer = null;
let isRestarting = false;

function protect(options = {}) {
  const { strict = false, watch = true } = options;
  try {
    if (agent === null || process.env.OPIK_URL_OVERRIDE !== agent.url) {
      started = options;
      lead(options);
    } else {
      // A synchronous call can't ask it. The binary can, and takes nobody else for it.
      leadAgain();
    }
    if (watch && timer === null) {
      timer = setInterval(lookAfter, Number(options.watchIntervalMs) || WATCH_INTERVAL_MS);
      timer.unref();
    }
    return { protected: true, ...shown(agent) };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    if (strict) throw new ProtectionError(reason);
    console.error(`opik-offline: NOT PROTECTED, traces are lost if the Opik server is away: ${reason}`);
    return { protected: false, reason };
  }
}

/** Finds or starts the agent, and leads the environment to it. */
function lead({ upstream, db, idleExit = IDLE_EXIT }) {
  const wrapped = wrappedBy();
  if (wrapped && !upstream && !db && agent === null) {
    // An agent wraps this process, or its parent was protected. If it is gone, the binary finds the same server.
    const report = start(["--upstream", wrapped.server], idleExit);
    adopt(report);
    return;
  }
  adopt(start([...(upstream ? ["--upstream", upstream] : []), ...(db ? ["--db", db] : [])], idleExit));
}

function adopt(report) {
  const { set, unset } = report.environment;
  for (const name of [...Object.keys(set), ...unset]) {
    if (!before.has(name)) before.set(name, process.env[name]);
  }
  Object.assign(process.env, set);
  for (const name of unset) delete process.env[name];
  const { url, page, server, db, pid } = report;
  agent = { url, page, server, db, pid, folder: dirname(report.log) };
}

/** Finds or starts the agent of the last call, and says so if it is another process. */
function leadAgain() {
  const { url, pid } = agent;
  lead({ ...started, upstream: agent.server });
  if (agent.pid !== pid) console.error("opik-offline: the agent was gone and was started again");
  if (agent.url === url) return;
  console.error(`opik-offline: its port was taken: clients made before send to ${new URL(url).origin}, NOT PROTECTED`);
}

/** Returns what users are told of an agent. */
function shown({ folder, ...known }) {
  return known;
}

function start(flags, idleExit) {
  const binary = find();
  const command = ["agent", "--background", "--format", "json", ...flags];
  if (idleExit && !(process.env.OPIK_OFFLINE_IDLE_EXIT || "").trim()) command.push("--idle-exit", idleExit);
  const done = spawnSync(binary, command, { stdio: ["ignore", "pipe", "pipe"], timeout: START_TIMEOUT_MS, encoding: "utf8" });
  if (done.error) throw new ProtectionError(`cannot run ${binary}: ${done.error.message}`);
  if (done.status !== 0) {
    throw new ProtectionError(done.stderr.trim().replaceAll("\n", "; ").slice(-2000) || `${binary} exited with ${done.status}`);
  }
  const report = JSON.parse(done.stdout);
  if (report.url && report.environment && report.log) return report;
  throw new ProtectionError(`${binary} is of another version than this package`);
}

function wrappedBy() {
  const url = (process.env.OPIK_URL_OVERRIDE || "").trim().replace(/\/$/, "");
  const [known, server] = (process.env.OPIK_OFFLINE_WRAPPED_BY || "").trim().split(" ");
  return url && server && known.replace(/\/$/, "") === url ? { url, server } : null;
}

/** Its request keeps an agent that ends as idle; if the agent is gone, another one is started. */
async function lookAfter() {
  if (agent === null || isRestarting || (await ready(agent)).known || agent === null) return;
  isRestarting = true;
  try {
    leadAgain();
  } catch (error) {
    console.error(`opik-offline: NOT PROTECTED: the agent is gone and can't be started again: ${error.message}`);
  } finally {
    isRestarting = false;
  }
}

function unprotect() {
  if (timer !== null) clearInterval(timer);
  timer = null;
  for (const [name, value] of before) {
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  }
  before = new Map();
  agent = null;
}

async function status() {
  const own = agent;
  if (own === null) return { protected: false, reason: "protect() was not called" };
  const { known, reason } = await ready(own);
  if (!known) return { protected: false, reason, ...shown(own) };
  const { store = {}, server = {} } = known;
  const more = { connection: server.connection, waiting: store.waiting, rejected: store.rejected };
  const answered = { ...shown(own), pid: known.agent.pid, ...more };
  if (store.usable !== false) return { ...answered, protected: true };
  return { ...answered, protected: false, reason: `the agent can't use its store: ${store.reason}` };
}

async function flush(seconds = 30, { clients = [] } = {}) {
  const failed = (reason) => ({ delivered: false, remaining: null, rejected: 0, reason });
  const own = agent;
  if (own === null) return failed("this process is not protected");
  const deadline = Date.now() + seconds * 1000;
  for (const client of clients) {
    try {
      await client.flush();
    } catch (error) {
      return failed(`a client of the Opik SDK could not be flushed: ${error.message}`);
    }
  }
  // Another program would know nothing of our messages, whatever it answers.
  const problem = await unproven(own);
  if (problem) return failed(problem);
  // Everything for the agent's server: which headers a client of the SDK sends is not to be read from its settings, and the
  // wrong ones would be answered with a queue that is empty.
  const left = Math.max(0, deadline - Date.now());
  const answer = await ask("POST", own.url, `/-/flush?timeout=${left / 1000}`, left + FLUSH_GRACE_MS);
  if (typeof answer?.document?.delivered !== "boolean") {
    return failed(answer?.document?.message || "the agent does not answer");
  }
  const { delivered, remaining, rejected, reason } = answer.document;
  return { delivered, remaining, rejected, reason };
}

/** Asks the agent about itself; its answer is `known`, or there is a `reason` why it has none. */
async function ready(own) {
  // What it answers here is not secret: the port's next owner may imitate it.
  const reason = await unproven(own);
  if (reason) return { reason };
  const answer = await ask("GET", own.url, "/-/ready", ANSWER_TIMEOUT_MS);
  return answer?.status === 200 && answer.document?.agent ? { known: answer.document } : { reason: "the agent does not answer" };
}

/**
 * Returns null if the program at the agent's address knows the secret in the agent's private folder; otherwise why the agent
 * is gone. Neither that secret nor the intake token is sent.
 */
async function unproven({ url, folder }) {
  const { origin, port } = new URL(url);
  const nonce = randomBytes(16).toString("hex");
  const answer = await ask("GET", origin, `/-/instance?nonce=${nonce}`, ANSWER_TIMEOUT_MS);
  if (answer === null) return "the agent does not answer";
  const record = ownRecord(folder);
  const isOfPort = String(record?.listen).endsWith(`:${port}`);
  const isProven = isOfPort && record.secret && isProof(String(record.secret), nonce, String(answer.document?.proof));
  return isProven ? null : "the agent is gone, and another program answers at its address";
}

function isProof(secret, nonce, proof) {
  const expected = createHmac("sha256", secret).update(`opik-offline instance ${nonce}`).digest();
  const given = Buffer.from(proof, "hex");
  return given.length === expected.length && timingSafeEqual(given, expected);
}

/** Returns the port file in this folder, if this user wrote it. */
function ownRecord(folder) {
  let file;
  try {
    file = openSync(join(folder, "agent.json"), constants.O_RDONLY | constants.O_NOFOLLOW);
    return fstatSync(file).uid === process.geteuid() ? JSON.parse(readFileSync(file, "utf8")) : null;
  } catch {
    return null;
  } finally {
    if (file !== undefined) closeSync(file);
  }
}

/** Asks the program at this URL, past every proxy; null if it gives no answer in time, or one that is too long. */
function ask(method, url, path, timeoutMs) {
  const { hostname, port, pathname } = new URL(url);
  if (pathname.startsWith(TOKEN_PREFIX)) path = TOKEN_PREFIX + pathname.slice(TOKEN_PREFIX.length).split("/")[0] + path;
  return new Promise((resolve) => {
    const signal = AbortSignal.timeout(Math.min(Math.ceil(timeoutMs), TIMER_MS_MAX));
    const request = http.request({ host: hostname, port, path, method, signal, agent: false }, (answer) => {
      let text = "";
      answer.setEncoding("utf8");
      answer.on("data", (part) => {
        text += part;
        if (text.length > ANSWER_CHARACTERS_MAX) request.destroy();
      });
      answer.on("error", () => resolve(null));
      answer.on("end", () => {
        let document = null;
        try {
          document = JSON.parse(text);
        } catch {
          // Of another program, which has the port now.
        }
        resolve({ status: answer.statusCode, document });
      });
    });
    request.on("error", () => resolve(null));
    request.end();
  });
}

module.exports = { protect, unprotect, status, flush, ProtectionError };
