// An application that uses the published Opik TypeScript SDK, driven line by line from standard input.
//
// Commands and answers are those of `app.py`. Two things differ: the SDK's flush does not say whether it could send, and
// an update that follows its create at once is merged into it, so `update` flushes first.
//
// Packages are found through NODE_PATH, which only `require` reads.

const { Opik } = require("opik");
const readline = require("node:readline");

const RUN = process.argv[2];
const PROJECT = "sdk-test";

const client = new Opik({ projectName: PROJECT });
const manual = []; // traces with their spans that wait for their update
let unscored = [];
let count = 0;

const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const expect = (kind, id, fields) => say({ kind, id, fields });

function make(name) {
  count += 1;
  const input = { n: count, text: "Grüße 你好", deep: [null, { a: null }] };
  const trace = client.trace({ name: `${name} ${count}`, input, tags: [RUN], threadId: `${RUN}-thread` });
  const outer = trace.span({ name: "outer", type: "tool", input });
  const inner = outer.span({ name: "inner", type: "llm", input, model: "m", usage: { promptTokens: 3 } });
  const id = trace.data.id;
  expect("trace", id, { name: `${name} ${count}`, input, tags: [RUN], project_name: PROJECT });
  expect("span", outer.data.id, { name: "outer", type: "tool", trace_id: id, input });
  expect("span", inner.data.id, { name: "inner", type: "llm", trace_id: id, parent_span_id: outer.data.id, model: "m" });
  unscored.push({ trace, inner });
  return { trace, outer, inner };
}

function end({ trace, outer, inner }) {
  inner.update({ output: { answer: "done" } });
  inner.end();
  outer.end();
  trace.update({ output: { done: true }, metadata: { updated: true } });
  trace.end();
  expect("span", inner.data.id, { output: { answer: "done" } });
  expect("trace", trace.data.id, { output: { done: true }, metadata: { updated: true } });
}

const commands = {
  traces(number) {
    for (let n = 0; n < number; n++) end(make("trace"));
  },
  manual(number) {
    for (let n = 0; n < number; n++) manual.push(make("manual"));
  },
  async update() {
    await client.flush();
    manual.splice(0).forEach(end);
    await client.flush();
  },
  scores() {
    for (const [n, { trace, inner }] of unscored.entries()) {
      trace.score({ name: "quality", value: n / 8, reason: RUN });
      inner.score({ name: "relevance", value: 1 });
      say({ kind: "trace", id: trace.data.id, score: "quality", value: n / 8 });
      say({ kind: "span", id: inner.data.id, score: "relevance", value: 1 });
    }
    unscored = [];
  },
  async flush() {
    await client.flush();
    return { flushed: true };
  },
};

async function main() {
  say({ done: "start" });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [command, ...values] = line.trim().split(" ");
    if (command === "quit") break;
    say({ done: command, ...(await commands[command](...values.map(Number))) });
  }
  await client.flush();
  say({ done: "quit" });
  process.exit(0);
}

main();
