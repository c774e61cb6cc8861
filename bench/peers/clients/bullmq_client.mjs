// BullMQ, with its own worker.

import { chunks, host, mark, payload, port, produce, require, results, settings, stamps, working } from "./bench_client.mjs";

const { Queue, QueueEvents, Worker } = require("bullmq");
const connection = { host, port, maxRetriesPerRequest: null };
const options = { removeOnComplete: results ? 1000 : true, removeOnFail: true };

async function work(job) {
  mark(job.data.n);
  return stamps ? job.data.n : undefined;
}

if (working) {
  new Worker("bench", work, { connection, concurrency: settings.concurrency, skipStalledCheck: false });
} else {
  const queue = new Queue("bench", { connection });
  await queue.waitUntilReady();
  const events = results ? new QueueEvents("bench", { connection }) : null;
  await events?.waitUntilReady();
  await produce({
    one: (n) => queue.add("work", payload(n), options),
    async bulk(first, tasks) {
      const batches = chunks(first, tasks, settings.batch);
      const lane = async () => {
        for (const batch of batches) await queue.addBulk(batch.map((n) => ({ name: "work", data: payload(n), opts: options })));
      };
      await Promise.all(Array.from({ length: settings.in_flight }, lane));
    },
    answer: async (n) => (await queue.add("work", payload(n), options)).waitUntilFinished(events),
    async close() {
      await events?.close();
      await queue.close();
    },
  });
}
