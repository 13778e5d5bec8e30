// A client for GT Store in JavaScript, without dependencies: an example for authors of clients.
// It was written from docs/PROTOCOL.md alone; the numbers in brackets are its sections.
import { randomBytes } from "node:crypto";
import net from "node:net";

const CLUSTER_INFO = 0x02, GET_MAP = 0x03, NEXT_PRIMARY = 0x05; // kinds of messages [6]
const GET = 0x10, WRITE = 0x11, COMMIT = 0x12;
const CLUSTER = 0x82, MAP = 0x83, OWNERS = 0x84, ENTRY = 0x90, NOT_FOUND = 0x91;
const ACK = 0x92, SUPERSEDED = 0x93, ERROR = 0xff;
const COMMITTED = 1, ORDERED = 2, TOMBSTONE = 4, EXPIRES = 8; // flags of an entry [2]
const STALE_EPOCH = 12, TOO_FAR = 15, NO_SPACE = 16, INTERNAL = 18, TOO_OLD = 19; // errors [8]
const NO_RETRY = [1, 2, 3, 4, 5, 6, 8, 10, 14, 17];
const CLOSES = [1, 2, 3, 7, 8, 9, 18];
const HEADER_SIZE = 12, BODY_SIZE_MAX = 16_778_228, VALUE_SIZE_MAX = 16_777_216;

export class DidNotHappen extends Error {} // and never will
export class OutcomeUnknown extends Error {} // it happens at most once: before, now, later or never

const u16 = (n) => Buffer.from([n >> 8, n & 255]);
const u32 = (n) => { const b = Buffer.alloc(4); b.writeUInt32BE(n); return b; };
const u64 = (n) => { const b = Buffer.alloc(8); b.writeBigUInt64BE(n); return b; };
const keyed = (key) => Buffer.concat([u16(key.length), key]);
const clusterOf = (epoch) => epoch >> 32n;
const tenureOf = (row) => `${clusterOf(row.epoch)} ${row.owners[0]} ${row.primaryEpoch}`;
const isHeld = (answer) => answer.kind === ACK || answer.kind === SUPERSEDED;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

class Reader { // takes the fields of a body, one after the other [2]
  constructor(bytes) { this.bytes = bytes; this.at = 0; }
  take(size) {
    if (this.at + size > this.bytes.length) throw new Error("a reply's body ends too early");
    return this.bytes.subarray(this.at, (this.at += size));
  }
  int(size) { return this.take(size).readUIntBE(0, size); }
  u64() { return this.take(8).readBigUInt64BE(); }
  list(countSize, item) { return Array.from({ length: this.int(countSize) }, item); }
  owner() { const node = this.int(2); this.take(13); return node; }
  row() {
    const [partition, epoch, primaryEpoch] = [this.int(4), this.u64(), this.u64()];
    return { partition, epoch, primaryEpoch, owners: this.list(1, () => this.owner()) };
  }
  member() {
    const node = this.int(2);
    this.take(9); // state, incarnation, process
    return { node, port: this.int(2), host: this.take(this.int(2)).toString() };
  }
}

function decode(kind, body) { // a reply's fields, those that a client needs [7]
  const r = new Reader(body);
  switch (kind) {
    case CLUSTER: {
      const epoch = r.u64();
      r.take(4);
      const [hash, partitions, time] = [r.int(1), r.int(4), r.u64()];
      return { kind, epoch, hash, partitions, time, members: r.list(2, () => r.member()) };
    }
    case MAP: return { kind, epoch: r.u64(), rows: r.list(4, () => r.row()) };
    case OWNERS: return { kind, row: r.row(), members: r.list(2, () => r.member()) };
    case ENTRY: {
      const [version, flags] = [r.take(16), r.take(5)[4]];
      if (flags & EXPIRES) r.take(8);
      return { kind, entry: body, version, flags, value: body.subarray(r.at) };
    }
    case SUPERSEDED: return { kind, time: r.u64() };
    case ERROR: {
      const [code, text] = [r.int(2), r.take(r.int(2)).toString()];
      // A code of a later version, too, may mean that it was done [4].
      const maybe = code === INTERNAL || code > TOO_OLD;
      return { kind, code, text, maybe, row: code === STALE_EPOCH ? r.row() : undefined };
    }
    case ACK: case NOT_FOUND: return { kind };
  }
  throw new Error(`a reply of kind ${kind}`);
}

class Connection {
  static id = 0;
  constructor({ host, port }) {
    Object.assign(this, { waiting: new Map(), owed: [], bytes: Buffer.alloc(0) });
    this.socket = net.connect({ host, port, noDelay: true }, () => { this.opened = true; });
    this.socket.on("data", (data) => this.receive(data));
    this.socket.on("error", (error) => this.end(error.message));
    this.socket.on("close", () => this.end("the connection was closed"));
  }
  /** Resolves, always: with the reply, or with what became of the request without one. */
  ask(kind, body, deadline) {
    return new Promise((resolve) => {
      const id = (Connection.id = (Connection.id % 0xffffffff) + 1); // never 0 [3]
      // The late reply must not be taken for another one's: no answer ends the connection [5].
      const timer = setTimeout(() => this.end("no answer in time"), deadline - performance.now());
      this.waiting.set(id, (answer) => { clearTimeout(timer); resolve(answer); });
      this.socket.write(Buffer.concat([...this.owed.splice(0), frame(kind, id, body)]));
    });
  }
  receive(data) {
    this.bytes = Buffer.concat([this.bytes, data]);
    while (this.bytes.length >= HEADER_SIZE && !this.ended) {
      const length = this.bytes.readUInt32BE(8);
      const isFrame = this.bytes.readUInt16BE(0) === 0xc701 && length <= BODY_SIZE_MAX;
      if (!isFrame) return this.end("it answers with something that is no frame");
      if (this.bytes.length < HEADER_SIZE + length) return;
      const [id, kind] = [this.bytes.readUInt32BE(4), this.bytes[2]];
      const body = Buffer.from(this.bytes.subarray(HEADER_SIZE, HEADER_SIZE + length));
      this.bytes = this.bytes.subarray(HEADER_SIZE + length);
      try { this.take(id, decode(kind, body)); } catch (error) { this.end(error.message); }
    }
  }
  take(id, answer) {
    const isLast = answer.kind === ERROR && (id === 0 || CLOSES.includes(answer.code));
    if (!this.waiting.has(id) && !isLast) throw new Error("a reply that nobody awaits");
    this.waiting.get(id)?.(answer);
    this.waiting.delete(id);
    // Nothing more is handled after such an ERROR: what else is awaited was not done [5].
    if (isLast) this.end(answer.text, false);
  }
  end(lost, maybe = Boolean(this.opened)) {
    this.ended = true;
    this.socket.destroy();
    for (const resolve of this.waiting.values()) resolve({ lost, maybe, refused: !this.opened });
    this.waiting.clear();
  }
  close() { // requests that were sent are handled after our end, and so are COMMITs [5]
    if (!this.opened || this.ended) return this.end("closed");
    return new Promise((done) => this.socket.once("close", done).end(Buffer.concat(this.owed)));
  }
}

const frame = (kind, id, body) =>
  Buffer.concat([Buffer.from([0xc7, 1, kind, 0]), u32(id), u32(body.length), body]);

export class Client {
  static async connect(host, port, { timeoutMs = 5000 } = {}) {
    const client = Object.assign(new Client(), { manager: { host, port }, timeoutMs, shiftMs: 0 });
    Object.assign(client, { connections: new Map(), members: new Map(), lastTime: 0n, counter: 0 });
    client.id = randomBytes(8);
    await client.init(performance.now() + timeoutMs, false);
    return client;
  }
  close() { return Promise.all([...this.connections.values()].map((c) => c.close())); }
  put(key, value) { return this.write(bytesOf(key, 1, 500), bytesOf(value, 0, VALUE_SIZE_MAX), 0); }
  delete(key) { return this.write(bytesOf(key, 1, 500), Buffer.alloc(0), TOMBSTONE); }

  async get(text) { // [10.4]
    const key = bytesOf(text, 1, 500), call = this.call();
    for (;;) {
      const row = this.rowOf(key), others = row.owners.slice(1);
      let answers = [await this.askNode(row.owners[0], GET, [place(row, key)], call)];
      const { kind, flags, entry, version, value } = answers[0];
      const found = flags & TOMBSTONE ? null : value;
      if (kind === NOT_FOUND) return null;
      if (kind === ENTRY && (flags & COMMITTED || !others.length)) return found;
      if (kind === ENTRY) { // pending: some owner may not hold it, and it could vanish
        answers = await this.round(row, others, key, entry, flags, call);
        if (answers.every(isHeld)) return this.commit(row, key, version), found;
      }
      const why = await this.learn(answers, row, key, call);
      if (why) throw new DidNotHappen(why);
    }
  }

  async write(key, value, flags) { // [10.3]: the same names as there
    const call = this.call(), counter = u32(++this.counter);
    let row = this.rowOf(key), time = this.newTime(0n), versions = 1;
    let acked = false, unresolved = false, touched = false;
    for (;;) {
      const entry = Buffer.concat([u64(time), this.id, counter, Buffer.from([flags]), value]);
      const answers = await this.round(row, row.owners, key, entry, flags, call, !acked);
      acked ||= answers[0].kind === ACK;
      unresolved ||= Boolean(answers[0].maybe);
      touched ||= answers.some((answer) => answer.kind === ACK || answer.maybe);
      if (acked && answers.length === row.owners.length && answers.every(isHeld)) {
        this.commit(row, key, entry.subarray(0, 16));
        return row.owners;
      }
      const isFinal = ({ code }) => code === TOO_FAR || code === NO_SPACE || code === TOO_OLD;
      const refusal = touched ? answers.slice(0, 1).find(({ code }) => code === TOO_OLD)
        : answers.find(isFinal);
      let why = refusal ? refusal.text : await this.learn(answers, row, key, call);
      const next = this.rowOf(key); // only now: another call may have brought a newer one
      if (!why && tenureOf(next) !== tenureOf(row)) {
        if (touched && versions > 1) why = "another primary, after two versions";
        [acked, unresolved] = [false, touched];
      } else if (!why && answers[0].kind === SUPERSEDED && !acked) {
        // The unanswered one may be older than what refuses this one: it could happen twice.
        if (unresolved) why = "overtaken, while an answer was missing";
        const step = versions === 1 ? 1n : 1000n << BigInt(Math.min(versions, 10));
        time = this.newTime(answers[0].time + step); // [10.7]
        [flags, versions] = [flags | ORDERED, versions + 1];
      }
      if (why) throw new (touched ? OutcomeUnknown : DidNotHappen)(why);
      row = next;
    }
  }

  /** WRITE to these owners; ordered entries one after the other, and not past a refusal. */
  async round(row, owners, key, entry, flags, call, needsPrimary = false) {
    const ask = (node) => this.askNode(node, WRITE, [place(row, key), entry], call);
    if (!(flags & ORDERED)) return Promise.all(owners.map(ask));
    const answers = [];
    for (const node of owners) {
      answers.push(await ask(node));
      const isRefused = needsPrimary && answers.length === 1 && answers[0].kind !== ACK;
      if (isRefused || !isHeld(answers.at(-1))) break;
    }
    return answers;
  }

  /** Does what the answers ask for [10.5]. Returns why the call must end, or nothing. */
  async learn(answers, row, key, call) {
    let isNew = false;
    for (const { code, text, lost, refused, row: theirs, node } of answers) {
      if (NO_RETRY.includes(code)) return text;
      isNew ||= Boolean(lost) && !refused && !call.lost; // it may only have been old: once more
      if (code === STALE_EPOCH) await this.adopt(theirs, call);
      if (!lost || (!refused && !call.lost)) continue;
      const until = performance.now() + (call.deadline - performance.now()) / 2;
      const body = Buffer.concat([u16(node), keyed(key)]);
      const reply = await this.connection(this.manager).ask(NEXT_PRIMARY, body, until);
      if (NO_RETRY.includes(reply.code)) return reply.text;
      for (const member of reply.members ?? []) this.members.set(member.node, member);
      if (reply.row) await this.adopt(reply.row, call);
    }
    call.lost ||= answers.some(({ lost }) => lost);
    isNew ||= this.rowOf(key) !== row || (answers.every(isHeld) && !call.pauses);
    const ms = isNew ? 0 : Math.min(50, 2 ** call.pauses++) * (0.5 + Math.random() / 2);
    const bad = answers.find((answer) => answer.text ?? answer.lost) ?? {};
    if (performance.now() + ms >= call.deadline) return bad.text ?? bad.lost ?? "no success in time";
    if (ms) await pause(ms);
  }
  async adopt(row, call) {
    if (clusterOf(row.epoch) !== this.cluster) return this.init(call.deadline, true); // another one
    if (row.epoch > this.rows[row.partition].epoch) this.rows[row.partition] = row;
  }
  async init(deadline, isPatient) { // [10.2]
    for (let ms = 1; ; ms = Math.min(50, 2 * ms)) {
      const ask = (kind, body) => this.connection(this.manager).ask(kind, body, deadline);
      const shape = await ask(CLUSTER_INFO, Buffer.alloc(0)), map = await ask(GET_MAP, u64(0n));
      const isWhole = shape.kind === CLUSTER && map.rows?.length === shape.partitions;
      if (isWhole && clusterOf(shape.epoch) === clusterOf(map.epoch)) {
        if (shape.hash > 2) throw new DidNotHappen(`hash ${shape.hash} is not known here`);
        for (const member of shape.members) this.members.set(member.node, member);
        const { hash, partitions, time } = shape;
        return Object.assign(this, { hash, partitions, time, since: process.hrtime.bigint(),
          rows: map.rows, cluster: clusterOf(map.epoch) });
      }
      const isOver = (map.refused && !isPatient) || performance.now() + ms > deadline;
      if (isOver) throw new DidNotHappen(map.text ?? map.lost ?? "two halves of two clusters");
      await pause(ms);
    }
  }
  call() { return { deadline: performance.now() + this.timeoutMs, pauses: 0, lost: false }; }
  rowOf(key) { return this.rows[hashes[this.hash](key) % this.partitions]; } // [10.1]
  /** Never the same twice: a second entry with one version would be answered ACK and lost [10.2]. */
  newTime(above) {
    const clock = this.time + (process.hrtime.bigint() - this.since) / 1000n;
    const times = [clock + BigInt(this.shiftMs) * 1000n, above, this.lastTime + 1n];
    return (this.lastTime = times.reduce((a, b) => (a > b ? a : b)));
  }
  async askNode(node, kind, parts, call) {
    const member = this.members.get(node);
    if (!member) return { node, lost: `node ${node} has no address`, refused: true };
    const answer = await this.connection(member).ask(kind, Buffer.concat(parts), call.deadline);
    return { ...answer, node };
  }
  connection(address) {
    const name = `${address.host} ${address.port}`;
    if (this.connections.get(name)?.ended !== false) {
      this.connections.set(name, Object.assign(new Connection(address), { ended: false }));
    }
    return this.connections.get(name);
  }
  /** COMMIT goes in front of the next request to the primary, or with the end [10.3]. */
  commit(row, key, version) {
    const body = Buffer.concat([u32(row.partition), version, keyed(key)]);
    const member = this.members.get(row.owners[0]);
    if (row.owners.length > 1 && member) this.connection(member).owed.push(frame(COMMIT, 0, body));
  }
}

const place = (row, key) => Buffer.concat([u64(row.epoch), u32(row.partition), keyed(key)]);
const hashes = [, (key) => key.reduce((sum, byte) => sum + byte, 0), crc16];

function crc16(key) {
  let crc = 0;
  for (const byte of key) {
    crc ^= byte << 8;
    for (let i = 0; i < 8; i++) crc = ((crc << 1) ^ (crc & 0x8000 ? 0x1021 : 0)) & 0xffff;
  }
  return crc;
}

function bytesOf(data, min, max) {
  const bytes = Buffer.from(data);
  if (bytes.length >= min && bytes.length <= max) return bytes;
  throw new RangeError(`${min} to ${max} bytes are allowed, not ${bytes.length}`);
}
