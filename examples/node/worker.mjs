// A taskq worker in Node.js, written from docs/protocol.md.  It needs nothing but @msgpack/msgpack.
//
//     npm ci && node worker.mjs localhost:7000 greetings
//
// It lives through broken connections and restarts of the broker: it resumes its session, goes on with the tasks that it still holds, and sends
// the reports again that were not answered.  SIGTERM: it takes nothing new, finishes what it runs, and says goodbye.

import { decode, encode } from "@msgpack/msgpack";
import net from "node:net";
import os from "node:os";

// What this worker can do: a function for each task type.  A payload that is a map comes as one object, a list as arguments, anything else as one.
const HANDLERS = {
  "node.greet": async ({ name }) => `hello ${name}`,
  "node.add": async (a, b) => a + b,
  "node.wait": async ({ ms }) => new Promise((done) => setTimeout(done, ms, `waited ${ms} ms`)),
  "node.fail": async ({ why }) => {
    throw new Error(why);
  },
};
const CONCURRENCY = 10;

const [KIND, NAME] = (() => {
  const kind = { HELLO: 0x1, WELCOME: 0x2, RESUME: 0x3, RESUMED: 0x4, HEARTBEAT: 0x5, BEAT: 0x6, OK: 0x9, ERROR: 0xa, GOAWAY: 0xb, BYE: 0xc };
  Object.assign(kind, { CONSUME: 0x102, CREDIT: 0x103, DELIVER: 0x104, ACK: 0x105, FAIL: 0x106, RELEASE: 0x107, REPORTED: 0x108, REVOKE: 0x109 });
  return [kind, Object.fromEntries(Object.entries(kind).map(([name, number]) => [number, name]))];
})();
const RESENT = 1, RETRY = 0, MSGPACK = 1, JSON_TEXT = 2, LOST = 1;
const EMPTY = Buffer.alloc(0);

// ---- frames: length, version, flags, kind, seq, head length, head, payload (section 2)

function frame(kind, seq, fields, payload = EMPTY, flags = 0) {
  const head = encode(fields), prefix = Buffer.alloc(16);
  prefix.writeUInt32BE(12 + head.length + payload.length, 0);
  prefix.writeUInt8(1, 4);
  prefix.writeUInt8(flags, 5);
  prefix.writeUInt16BE(kind, 6);
  prefix.writeUInt32BE(seq, 8);
  prefix.writeUInt32BE(head.length, 12);
  return Buffer.concat([prefix, head, payload]);
}

function* frames(inbox) {
  while (inbox.bytes.length >= 16) {
    const end = 4 + inbox.bytes.readUInt32BE(0);
    if (inbox.bytes.length < end) return;
    const whole = inbox.bytes.subarray(0, end), headEnd = 16 + whole.readUInt32BE(12);
    inbox.bytes = inbox.bytes.subarray(end);
    yield { kind: NAME[whole.readUInt16BE(6)], seq: whole.readUInt32BE(8), head: decode(whole.subarray(16, headEnd)), payload: whole.subarray(headEnd) };
  }
}

const members = (block, size) => Array.from({ length: block.length / size }, (_, at) => Buffer.from(block.subarray(at * size, (at + 1) * size)));
const ofTask = (column, at) => (column.length === 1 ? column[0] : column[at]);

// ---- the session: it outlives its connections

class Worker {
  constructor(host, port, queues) {
    Object.assign(this, { host, port, queues });
    this.session = this.secret = null; // of the session that is taken up again
    this.received = 0; // deliveries since the session began
    this.held = new Map(); // token in hex → the task, from its delivery until its report is answered
    this.reports = new Map(); // the same → [kind, fields, payload], until it is answered
    this.stopping = false;
    this.ready = false; // the session is taken up, reports may be sent
    this.attempt = 0;
  }

  connect() {
    this.inbox = { bytes: EMPTY };
    this.seq = 0;
    this.asked = new Map(); // seq → what is to be done with the answer
    this.socket = net.connect(this.port, this.host, () => this.greet());
    this.socket.setNoDelay(true);
    this.socket.on("data", (bytes) => this.read(bytes));
    this.socket.on("error", (error) => console.error(`no connection: ${error.message}`));
    this.socket.on("close", () => this.lost());
  }

  lost() {
    clearInterval(this.beating);
    this.ready = false;
    if (this.stopping && this.held.size === 0) return;
    const pause = Math.min(5_000, 100 * 2 ** this.attempt++) * (0.5 + Math.random() / 2); // grows, with jitter
    setTimeout(() => this.connect(), pause);
  }

  say(kind, fields, payload, flags) {
    this.socket.write(frame(kind, 0, fields, payload, flags));
  }

  ask(kind, fields, answered, payload, flags) {
    this.asked.set(++this.seq, answered);
    this.socket.write(frame(kind, this.seq, fields, payload, flags));
  }

  read(bytes) {
    this.inbox.bytes = Buffer.concat([this.inbox.bytes, bytes]);
    for (const { kind, seq, head, payload } of frames(this.inbox)) {
      if (kind === "ERROR") console.error(`${head[0]}: ${head[1]}`);
      if (seq !== 0) {
        const answered = this.asked.get(seq);
        this.asked.delete(seq);
        answered?.(kind, head);
      } else if (kind === "DELIVER") this.deliver(head, payload);
      else if (kind === "REVOKE") members(head[0], 8).forEach((token) => this.giveUp(token, "cancelled"));
      else if (kind === "GOAWAY") console.error(`the broker is stopping: ${head[0]}`);
    }
  }

  // ---- greeting, resuming (sections 4 and 5)

  greet() {
    const client = { name: `node-${process.pid}`, host: os.hostname(), pid: process.pid, sdk: "node example" };
    this.ask(KIND.HELLO, [1, "worker", client], (kind, welcome) => {
      if (kind !== "WELCOME") return this.socket.end();
      const [session, secret, , , heartbeat_ms] = welcome;
      this.beating = setInterval(() => this.beat(), heartbeat_ms);
      if (this.session === null) return this.begin(session, secret);
      const tokens = [...this.held.keys()];
      this.ask(KIND.RESUME, [this.session, this.secret, this.received, Buffer.from(tokens.join(""), "hex")], (answer, head) => {
        if (answer !== "RESUMED") return this.begin(session, secret); // the old session is over: all that it held is lost
        tokens.forEach((token, at) => head[0][at] === LOST && this.forget(token));
        this.work();
      });
    });
  }

  begin(session, secret) {
    Object.assign(this, { session, secret, received: 0 });
    [...this.held.keys()].forEach((token) => this.forget(token));
    this.work();
  }

  work() {
    this.attempt = 0;
    this.ready = true;
    if (!this.stopping) {
      this.ask(KIND.CONSUME, [this.queues, Object.keys(HANDLERS), CONCURRENCY], () => {});
      this.credit();
    }
    for (const [token, report] of this.reports) this.send(token, report, RESENT);
  }

  // ---- credit and heartbeats: the same account in both, drawn up anew each time

  get allowed() {
    return this.received + (this.stopping ? 0 : Math.max(0, CONCURRENCY - this.held.size));
  }

  credit() {
    this.say(KIND.CREDIT, [this.allowed]);
  }

  beat() {
    if (!this.ready) return;
    const tokens = Buffer.from([...this.held.keys()].join(""), "hex");
    this.ask(KIND.HEARTBEAT, [this.received, tokens, this.allowed], (kind, head) => {
      if (kind !== "BEAT") return;
      const [lost, cancelled, delivered = 0] = head;
      if (delivered > this.received) return this.socket.destroy(); // a DELIVER was lost on the way
      members(lost, 8).forEach((token) => this.forget(token.toString("hex")));
      members(cancelled, 8).forEach((token) => this.giveUp(token, "cancelled"));
      if (!this.stopping) this.credit();
    });
  }

  // ---- tasks

  deliver([sizes, , first, ids, tokens, types, encodings], payload) {
    if (first !== this.received + 1) return this.socket.destroy(); // a gap: resume
    this.received += sizes.length;
    const [eachId, eachToken] = [members(ids, 16), members(tokens, 8)];
    let from = 0;
    sizes.forEach((size, at) => {
      const body = payload.subarray(from, (from += size)), token = eachToken[at].toString("hex");
      this.held.set(token, eachId[at]);
      this.run(token, ofTask(types, at), ofTask(encodings, at), body);
    });
  }

  async run(token, type, encoding, body) {
    const id = this.held.get(token), bytes = Buffer.from(token, "hex");
    try {
      const value = encoding === MSGPACK ? decode(body) : encoding === JSON_TEXT ? JSON.parse(body.toString()) : body;
      const result = encode((await HANDLERS[type](...(Array.isArray(value) ? value : [value]))) ?? null);
      this.report(token, [KIND.ACK, [[result.length], id, bytes], result]);
    } catch (error) {
      this.report(token, [KIND.FAIL, [id, bytes, [RETRY], [0], [error.name], [String(error.stack)]], EMPTY]);
    }
  }

  report(token, report) {
    if (!this.held.has(token) || this.reports.has(token)) return; // the lease was lost, or it was given up
    this.reports.set(token, report);
    if (this.ready) this.send(token, report, 0);
  }

  send(token, [kind, fields, payload], flags) {
    // REPORTED settles it, and so does a refusal that would be the same the next time
    this.ask(kind, fields, (answer, head) => {
      if (answer === "ERROR" && head[3]) return setTimeout(() => this.ready && this.send(token, [kind, fields, payload], RESENT), head[4] || 100);
      this.forget(token);
    }, payload, flags);
  }

  giveUp(token, why) {
    const key = token.toString("hex");
    if (this.held.has(key)) this.report(key, [KIND.FAIL, [this.held.get(key), token, [RETRY], [0], ["Cancelled"], [why]], EMPTY]);
  }

  forget(token) {
    this.held.delete(token);
    this.reports.delete(token);
    if (this.stopping) this.leave();
    else if (this.ready) this.credit();
  }

  // ---- the end

  stop() {
    this.stopping = true;
    if (this.ready) this.ask(KIND.CONSUME, [[], [], 0], () => this.leave());
    else process.exit(0);
  }

  leave() {
    if (this.ready && this.held.size === 0) this.ask(KIND.BYE, [], () => process.exit(0));
  }
}

const [address = "localhost:7000", ...queues] = process.argv.slice(2);
const colon = address.lastIndexOf(":");
const worker = new Worker(address.slice(0, colon), Number(address.slice(colon + 1)), queues.length ? queues : ["default"]);
process.on("SIGTERM", () => worker.stop());
process.on("SIGINT", () => worker.stop());
worker.connect();
