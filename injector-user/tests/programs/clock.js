// Answers each line of standard input with nanoseconds: what it reads, a thread of its own, or a child.
const { execFileSync } = require("node:child_process");
const { createInterface } = require("node:readline");
const { Worker } = require("node:worker_threads");

const say = (text) => process.stdout.write(`${text}\n`);
const source = `
  const { parentPort } = require("node:worker_threads");
  parentPort.on("message", () => parentPort.postMessage(Date.now()));
`;
const worker = new Worker(source, { eval: true });
worker.on("message", (milliseconds) => say(`${milliseconds}000000`));

const answers = {
  here: () => say(`${Date.now()}000000`),
  steady: () => say(process.hrtime.bigint()),
  thread: () => worker.postMessage(null),
  child: () => say(execFileSync("date", ["+%s%N"]).toString().trim()),
};
const lines = createInterface({ input: process.stdin });
lines.on("line", (line) => answers[line]());
lines.on("close", () => process.exit(0));
