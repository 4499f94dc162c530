// Leads this process to the one background agent of its user and server.
//
// The TypeScript SDK reads OPIK_URL_OVERRIDE when a client is made, so protect() is synchronous and comes first: `import
// "opik-offline/auto"` before everything else, or `node --import opik-offline/auto app.mjs`. Nothing is thrown unless `strict`
// was asked for. A timer, which keeps no process alive, looks after the agent.
"use strict";

const { spawnSync } = require("node:child_process");
const http = require("node:http");
const { find } = require("./binary.cjs");

const IDLE_EXIT = "10m";
const START_TIMEOUT_MS = 90_000;
const ANSWER_TIMEOUT_MS = 5_000;
const FLUSH_GRACE_MS = 10_000;
const WATCH_INTERVAL_MS = 10_000;
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
    }
    if (watch && timer === null) {
      timer = setInterval(lookAfter, Number(options.watchIntervalMs) || WATCH_INTERVAL_MS);
      timer.unref();
    }
    return { protected: true, ...agent };
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
  agent = { url: report.url, page: report.page, server: report.server, db: report.db, pid: report.pid };
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
  if (!report.url || !report.environment) throw new ProtectionError(`${binary} is of another version than this package`);
  return report;
}

function wrappedBy() {
  const url = (process.env.OPIK_URL_OVERRIDE || "").trim().replace(/\/$/, "");
  const [known, server] = (process.env.OPIK_OFFLINE_WRAPPED_BY || "").trim().split(" ");
  return url && server && known.replace(/\/$/, "") === url ? { url, server } : null;
}

/** Its request keeps an agent that ends as idle; if the agent is gone, another one is started. */
async function lookAfter() {
  if (agent === null || isRestarting || (await ready(agent.url)) || agent === null) return;
  isRestarting = true;
  try {
    const url = agent.url;
    lead({ ...started, upstream: agent.server });
    console.error("opik-offline: the agent was gone and was started again");
    if (agent.url !== url) console.error(`opik-offline: its port was taken: clients made before send to ${url}, NOT PROTECTED`);
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
  if (agent === null) return { protected: false, reason: "protect() was not called" };
  const known = await ready(agent.url);
  if (!known) return { protected: false, reason: "the agent does not answer", ...agent };
  const { store = {}, server = {} } = known;
  const more = { connection: server.connection, waiting: store.waiting, rejected: store.rejected };
  const isUsable = store.usable !== false;
  return { ...agent, ...more, protected: isUsable, ...(isUsable ? {} : { reason: `the agent can't use its store: ${store.reason}` }) };
}

async function flush(seconds = 30, { clients = [] } = {}) {
  const failed = (reason) => ({ delivered: false, remaining: null, rejected: 0, reason });
  if (agent === null) return failed("this process is not protected");
  const deadline = Date.now() + seconds * 1000;
  for (const client of clients) {
    try {
      await client.flush();
    } catch (error) {
      return failed(`a client of the Opik SDK could not be flushed: ${error.message}`);
    }
  }
  // Everything for the agent's server: which headers a client of the SDK sends is not to be read from its settings, and the
  // wrong ones would be answered with a queue that is empty.
  const left = Math.max(0, deadline - Date.now());
  const answer = await ask("POST", agent.url, `/-/flush?timeout=${left / 1000}`, {}, left + FLUSH_GRACE_MS);
  if (typeof answer?.document?.delivered !== "boolean") {
    return failed(answer?.document?.message || "the agent does not answer");
  }
  const { delivered, remaining, rejected, reason } = answer.document;
  return { delivered, remaining, rejected, reason };
}

async function ready(url) {
  const answer = await ask("GET", url, "/-/ready", {}, ANSWER_TIMEOUT_MS);
  return answer?.status === 200 && answer.document?.agent ? answer.document : null;
}

/** Asks the agent, past every proxy; null if nobody answers. */
function ask(method, url, path, headers, timeoutMs) {
  const { hostname, port, pathname } = new URL(url);
  if (pathname.startsWith(TOKEN_PREFIX)) path = TOKEN_PREFIX + pathname.slice(TOKEN_PREFIX.length).split("/")[0] + path;
  return new Promise((resolve) => {
    const request = http.request({ host: hostname, port, path, method, headers, agent: false }, (answer) => {
      let text = "";
      answer.setEncoding("utf8");
      answer.on("data", (part) => (text += part));
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
    request.setTimeout(timeoutMs, () => request.destroy());
    request.on("error", () => resolve(null));
    request.end();
  });
}

module.exports = { protect, unprotect, status, flush, ProtectionError };
