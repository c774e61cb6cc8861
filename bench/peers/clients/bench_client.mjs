// What the Node clients share: the environment they are told by, the mark of a task, the modes of a producer.  ../contract.py is the contract.

import { openSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";

const { BENCH_PORT, BENCH_SETTINGS, BENCH_MARKS, BENCH_STAMPS, BENCH_RESULTS, BENCH_NODE } = process.env;
const TO = "user@example.com";
const LOW_LOAD_MS = 10;
const marks = openSync(BENCH_MARKS, "a");

export const host = "127.0.0.1";
export const port = Number(BENCH_PORT);
export const settings = JSON.parse(BENCH_SETTINGS);
export const stamps = BENCH_STAMPS === "1";
export const results = BENCH_RESULTS === "1";
export const working = process.argv[2] === "work";
// the packages are not beside this file
export const require = createRequire(join(BENCH_NODE, "package.json"));

const now = () => Number(process.hrtime.bigint());

export function mark(n) {
  if (!stamps) return void writeSync(marks, "x");
  const stamp = Buffer.alloc(16);
  stamp.writeBigInt64LE(BigInt(n), 0);
  stamp.writeBigInt64LE(process.hrtime.bigint(), 8);
  writeSync(marks, stamp);
}

export const payload = (n) => ({ to: TO, n });

export function* chunks(first, tasks, count) {
  for (let at = first; at < first + tasks; at += count) {
    yield Array.from({ length: Math.min(count, first + tasks - at) }, (_, i) => at + i);
  }
}

const timed = async (work) => {
  const started_ns = now();
  await work();
  return { started_ns, ended_ns: now() };
};

const modes = {
  one_by_one: (way, first, tasks) =>
    timed(async () => {
      for (let n = first; n < first + tasks; n++) await way.one(n);
    }),
  bulk: (way, first, tasks) => timed(() => way.bulk(first, tasks)),
  async low_load(way, first, tasks) {
    const sent_ns = [];
    const begin = performance.now();
    for (let i = 0; i < tasks; i++) {
      await new Promise((resolve) => setTimeout(resolve, Math.max(0, begin + i * LOW_LOAD_MS - performance.now())));
      sent_ns.push(now());
      await way.one(first + i);
    }
    return { sent_ns };
  },
  async round_trips(way, first, tasks) {
    const us = [];
    for (let n = first; n < first + tasks; n++) {
      const begin = now();
      if ((await way.answer(n)) !== n) throw new Error(`the result of task ${n} is another`);
      us.push((now() - begin) / 1000);
    }
    return { us };
  },
};

// `way` is { one, bulk, answer, close }
export async function produce(way) {
  const [mode, first, tasks] = process.argv.slice(3);
  const lines = createInterface({ input: process.stdin });
  const go = new Promise((resolve) => lines.once("line", resolve));
  console.log("ready");
  await go;
  console.log(JSON.stringify(await modes[mode](way, Number(first), Number(tasks))));
  lines.close();
  await way.close();
}
