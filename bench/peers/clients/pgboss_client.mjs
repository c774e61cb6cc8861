// pg-boss on Postgres.  A worker that got a full batch wakes itself, since it would sleep out its polling interval otherwise.

import { chunks, host, mark, payload, port, produce, require, settings, working } from "./bench_client.mjs";

const PgBoss = require("pg-boss");
const QUEUE = "bench";
const boss = new PgBoss({ host, port, user: "bench", database: "postgres", max: settings.pool, schedule: false });
boss.on("error", (error) => console.error(`ERROR ${error.message}`));
await boss.start();
await boss.createQueue(QUEUE);

if (working) {
  const ids = [];
  const batch = { batchSize: settings.batch, pollingIntervalSeconds: settings.poll_s };
  for (let i = 0; i < settings.workers; i++) {
    const id = await boss.work(QUEUE, batch, async (jobs) => {
      for (const job of jobs) mark(job.data.n);
      if (jobs.length === settings.batch) boss.notifyWorker(ids[i]);
    });
    ids.push(id);
  }
} else {
  await produce({
    one: (n) => boss.send(QUEUE, payload(n)),
    async bulk(first, tasks) {
      for (const batch of chunks(first, tasks, settings.insert)) await boss.insert(batch.map((n) => ({ name: QUEUE, data: payload(n) })));
    },
    close: () => boss.stop({ graceful: false, wait: false }),
  });
  process.exit(0);
}
