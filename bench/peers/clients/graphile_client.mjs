// graphile-worker on Postgres.

import { chunks, host, mark, payload, port, produce, require, settings, working } from "./bench_client.mjs";

const { Logger, makeWorkerUtils, run } = require("graphile-worker");
const connectionString = `postgres://bench@${host}:${port}/postgres`;
const logger = new Logger(() => (level, message) => level === "error" && console.error(message));

if (working) {
  await run({
    connectionString,
    logger,
    concurrency: settings.concurrency,
    maxPoolSize: settings.pool,
    pollInterval: settings.poll_ms,
    noHandleSignals: true,
    taskList: { work: (data) => mark(data.n) },
    preset: {
      worker: {
        localQueue: settings.local_queue > 0 ? { size: settings.local_queue } : undefined,
        completeJobBatchDelay: settings.complete_delay_ms,
        failJobBatchDelay: settings.complete_delay_ms,
      },
    },
  });
} else {
  const utils = await makeWorkerUtils({ connectionString, logger });
  await utils.migrate();
  await produce({
    one: (n) => utils.addJob("work", payload(n)),
    async bulk(first, tasks) {
      for (const batch of chunks(first, tasks, settings.batch)) {
        await utils.addJobs(batch.map((n) => ({ identifier: "work", payload: payload(n) })));
      }
    },
    close: () => utils.release(),
  });
}
