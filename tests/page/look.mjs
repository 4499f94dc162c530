// What tests/page/check runs: look.mjs CHROMIUM AGENT FOLDER
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import path from "node:path";
import puppeteer from "puppeteer-core";

const [chromium, agentBinary, folder] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const WIDTHS = [360, 800, 1280];
// Between a phone and a desktop only the layout differs.
const MIDDLE = 800;
const PATIENCE_MS = 60_000;
let passed = 0;
const ok = (what) => { passed += 1; console.log(`ok  ${what}`); };
const check = (holds, what) => { if (!holds) throw new Error(what); };
const listen = (server) => new Promise((done) => server.listen(0, "127.0.0.1", () => done(server.address().port)));
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const until = async (what, holds) => {
  for (const end = Date.now() + PATIENCE_MS; !(await holds()); await pause(100)) check(Date.now() < end, `waited in vain: ${what}`);
};

// The pages that the unit tests wrote, with the policy that the agent sends.
const policy = readFileSync(path.join(folder, "policy"), "utf8");
const files = http.createServer((request, answer) => {
  const file = path.join(folder, path.basename(request.url));
  answer.setHeader("Content-Security-Policy", policy);
  answer.setHeader("Content-Type", "text/html; charset=utf-8");
  answer.end(readFileSync(file));
});
// A server that takes everything, and can be away.
const opik = http.createServer((request, answer) => {
  request.resume();
  const isPing = request.url.includes("is-alive");
  if (request.headers.accept?.includes("text/html")) {
    answer.setHeader("Content-Type", "text/html");
    return answer.end("<title>Opik</title>");
  }
  answer.statusCode = isPing ? 200 : request.method === "POST" ? 201 : 204;
  if (isPing) answer.setHeader("Content-Type", "application/json");
  answer.end(isPing ? '{"message":"Healthy Server"}' : undefined);
});

// Opens an address and collects what the browser complains about.
async function open(browser, address, { width, dark, javascript }) {
  const page = await browser.newPage();
  const complaints = [];
  page.on("console", (message) => { if (["error", "warn"].includes(message.type())) complaints.push(message.text()); });
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("requestfailed", (request) => complaints.push(`failed: ${request.url()}`));
  await page.setViewport({ width, height: 900, deviceScaleFactor: 1 });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }]);
  await page.setJavaScriptEnabled(javascript);
  await page.goto(address, { waitUntil: "networkidle0", timeout: PATIENCE_MS });
  return { page, complaints };
}

async function assertFits(page, what) {
  const [wide, room] = await page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
  check(wide <= room, `${what}: the page is ${wide} px wide, the window ${room}`);
  // Neither does a part of it scroll sideways, or reach out of its card.
  const out = await page.$$eval("section *:not(svg *)", (found) => found.filter((it) => {
    if (it.closest(".unseen, thead")) return false;
    const card = it.closest("section").getBoundingClientRect();
    const box = it.getBoundingClientRect();
    return it.scrollWidth > it.clientWidth + 1 && getComputedStyle(it).overflowX !== "visible" || box.right > card.right + 1;
  }).map((it) => it.outerHTML.slice(0, 200)));
  check(out.length === 0, `${what}: too wide: ${out.slice(0, 3).join("\n")}`);
}

// WCAG 2.1 AA by axe-core: headings, names, captions, contrast.
async function assertAccessible(page, what) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21aa", "best-practice"] }));
  const told = violations.map((found) => `${found.id}: ${found.help}: ${found.nodes.map((node) => node.html).slice(0, 3).join(" ")}`);
  check(told.length === 0, `${what} is not accessible:\n${told.join("\n")}`);
}

async function looks(browser, origin) {
  const names = readdirSync(folder).filter((name) => name.endsWith(".html")).map((name) => name.slice(0, -5));
  check(names.length >= 7, "the pages were not written");
  for (const name of names) {
    for (const width of WIDTHS) {
      for (const dark of width === MIDDLE ? [false] : [false, true]) {
        const what = `${name}-${width}-${dark ? "dark" : "light"}`;
        for (const javascript of width === MIDDLE ? [true] : [false, true]) {
          const { page, complaints } = await open(browser, `${origin}/${name}.html`, { width, dark, javascript });
          check(complaints.length === 0, `${what}: the browser complains: ${complaints}`);
          await assertFits(page, what);
          const live = await page.evaluate(() => document.documentElement.dataset.live ?? "no");
          check(live === (javascript ? "yes" : "no"), `${what}: the script ${javascript ? "does not run" : "runs"}`);
          const shown = await page.$$eval("button.copy", (found) => found.filter((it) => it.offsetParent !== null).length);
          const all = (await page.$$("button.copy")).length;
          check(shown === (javascript ? all : 0), `${what}: ${shown} of ${all} buttons are shown`);
          if (javascript) {
            await assertAccessible(page, what);
            await page.screenshot({ path: path.join(folder, `${what}.png`), fullPage: true });
          }
          await page.close();
        }
      }
    }
    ok(`${name}: fits, no complaint, accessible, with and without JavaScript`);
  }
}

async function agentAlive(browser) {
  const opikPort = await listen(opik);
  const home = mkdtempSync(path.join(tmpdir(), "opik-page-"));
  const env = {
    PATH: process.env.PATH, HOME: home, TMPDIR: home,
    OPIK_CONNECTION_MONITOR_PING_INTERVAL: "0.2", OPIK_CONNECTION_MONITOR_CHECK_TIMEOUT: "1",
  };
  const args = ["agent", "--listen", "127.0.0.1:0", "--db", path.join(home, "store.db"), "--upstream", `http://127.0.0.1:${opikPort}/api`];
  let said = "";
  const start = () => {
    const started = spawn(agentBinary, args, { env, stdio: ["ignore", "ignore", "pipe"] });
    started.stderr.on("data", (data) => { said += data; });
    return started;
  };
  let agent = start();
  try {
    const port = () => said.match(/listening on http:\/\/127\.0\.0\.1:(\d+)/)?.[1];
    await until("the agent listens", () => port() !== undefined);
    const origin = `http://127.0.0.1:${port()}`;
    // Copies of commands.
    await browser.defaultBrowserContext().overridePermissions(origin, ["clipboard-read", "clipboard-write", "clipboard-sanitized-write"]);
    const write = (workspace) => fetch(`${origin}/api/v1/private/traces`, {
      method: "POST",
      headers: { "content-type": "application/json", "comet-workspace": workspace, authorization: "a-secret-key-0123456789" },
      body: JSON.stringify({ start_time: "2026-11-22T18:00:00Z", name: "private words" }),
    });
    check((await write("team")).status === 201, "a write was not taken");
    const { page, complaints } = await open(browser, origin, { width: 1280, dark: false, javascript: true });
    const verdict = () => page.evaluate(() => document.querySelector(".verdict").textContent);
    await until("the server is there", async () => (await verdict()).includes("all is well"));
    check(page.url() === `${origin}/-/`, `the page is at ${page.url()}`);
    const links = await page.$$eval("footer a", (found) => found.map((link) => link.href));
    check(links.length === 2, `the page has other links: ${links}`);
    for (const link of links) check((await fetch(link)).status === 200, `${link} leads nowhere`);
    ok("a real agent: calm, and its links lead to its figures");

    const link = await browser.newPage();
    await link.goto(`${origin}/team/projects/p/?tab=traces#t`, { timeout: PATIENCE_MS });
    check(link.url() === `http://127.0.0.1:${opikPort}/team/projects/p/?tab=traces#t`, `a link leads to ${link.url()}`);
    check((await link.title()) === "Opik", "a link shows another page than the server's");
    await link.close();
    ok("a link that an SDK prints leads to the server's own page");

    await page.evaluate(() => { window.sameDocument = true; });
    opik.closeAllConnections();
    await new Promise((done) => opik.close(done));
    for (let n = 0; n < 30; n += 1) check((await write(`<script>team ${n}</script>`)).status === 201, "a write was not stored");
    await until("the page shows the outage by itself", async () => (await verdict()).includes("30 messages are safe on disk"));
    const tab = () => page.evaluate(() => [document.title, document.querySelector("link[rel=icon]").href]);
    check((await tab())[0] === "▲ server away, 30 waiting · opik-offline", `the title is ${(await tab())[0]}`);
    check((await tab())[1].includes("M5 0l5 10H0z"), `the icon is ${(await tab())[1]}`);
    check(await page.evaluate(() => window.sameDocument), "the page was loaded again instead of being brought up to date");
    const text = await page.evaluate(() => document.documentElement.outerHTML);
    check(!text.includes("a-secret-key") && text.includes("a-se***"), "a key is shown");
    check(!text.includes("private words"), "a payload is shown");
    check(text.includes("&lt;script&gt;team 1&lt;/script&gt;"), "the lanes are not shown");
    await assertFits(page, "a real agent");
    await assertAccessible(page, "a real agent");
    await page.screenshot({ path: path.join(folder, "agent.png"), fullPage: true });
    ok("a real agent: an outage shows by itself, with 30 lanes, no key, no payload");

    const still = await open(browser, origin, { width: 360, dark: true, javascript: false });
    const read = await still.page.evaluate(() => document.body.innerText);
    check(read.includes("30 messages") && read.includes("Unavailable"), `without JavaScript the numbers are missing:\n${read}`);
    check((await still.page.$$("noscript meta[http-equiv=refresh], head meta[http-equiv=refresh]")).length === 1, "it would grow old");
    check(still.complaints.length === 0, `the browser complains: ${still.complaints}`);
    await assertFits(still.page, "a real agent without JavaScript");
    await still.page.close();
    ok("a real agent: the same without JavaScript");

    await new Promise((done) => opik.listen(opikPort, "127.0.0.1", done));
    await until("the page shows that all is delivered", async () => (await verdict()).includes("nothing waits"));
    check((await page.evaluate(() => document.getElementById("replays").innerText)).includes("30"), "the replay is not shown");
    check(complaints.length === 0, `the browser complains: ${complaints}`);
    ok("a real agent: back, and the replay is told");

    check((await tab())[0] === "● all delivered · opik-offline", `the title is ${(await tab())[0]}`);
    agent.kill("SIGKILL");
    await until("the page says that the agent is gone", () => page.evaluate(() => !document.getElementById("lost").hidden));
    check((await tab())[0] === "■ no answer · opik-offline", `the title is ${(await tab())[0]}`);
    ok("a page that is old says so, and so does its tab");
    await page.close();

    said = "";
    agent = start();
    await until("the agent listens again", () => port() !== undefined);
    const again = await open(browser, `http://127.0.0.1:${port()}/-/`, { width: 1280, dark: false, javascript: true });
    const plots = await again.page.evaluate(() => document.getElementById("plots").innerText);
    check(plots.includes("At most 30 waited") && plots.includes("The server was away for"), `the plots forgot: ${plots}`);
    await again.page.screenshot({ path: path.join(folder, "agent-restarted.png"), fullPage: true });
    ok("a real agent: the plots survive a restart");
  } finally {
    agent.kill("SIGKILL");
    rmSync(home, { recursive: true, force: true });
  }
}

const filesPort = await listen(files);
// Chromium's own sandbox needs what root and containers have not.
const browser = await puppeteer.launch({
  executablePath: chromium,
  args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--force-color-profile=srgb"],
});
try {
  await looks(browser, `http://127.0.0.1:${filesPort}`);
  await agentAlive(browser);
} finally {
  await browser.close();
  files.close();
  opik.closeAllConnections();
  opik.close();
}
console.log(`${passed} checks passed; screenshots are in ${folder}`);
