// A client for GT Store in JavaScript, without dependencies: an example for authors of clients.
// It was written from docs/PROTOCOL.md alone; the numbers in brackets are its sections.
import { randomBytes } from "node:crypto";
import net from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

export class DidNotHappen extends Error {} // and never will
export class OutcomeUnknown extends Error {} // it happens at most once: before, now, later or never

// A type is a function that takes its value from a body; beyond the body's end it throws [2].
const uint = (size) => (from) => from.body.readUIntBE((from.at += size) - size, size);
const [u8, u16, u32] = [uint(1), uint(2), uint(4)];
const u64 = (from) => from.body.readBigUInt64BE((from.at += 8) - 8);
const list = (count, item) => (from) => Array.from({ length: count(from) }, () => item(from));
const text = (from) => Buffer.from(list(u16, u8)(from)).toString();
const record = (fields) => (from) =>
  Object.fromEntries(Object.entries(fields).map(([name, type]) => [name, type(from)]));

const OWNER = record({ node: u16, incarnation: u32, joinEpoch: u64, inSync: u8 });
const ROW = record({ partition: u32, listEpoch: u64, primaryEpoch: u64, owners: list(u8, OWNER) });
const MEMBER = record({ node: u16, state: u8, incarnation: u32, pid: u32, port: u16, host: text });
const SHAPE = { epoch: u64, nodes: u16, replicas: u16, hash: u8, partitions: u32, time: u64 };
const CLUSTER_INFO = 0x02, GET_MAP = 0x03, NEXT_PRIMARY = 0x05; // kinds of requests [6]
const GET = 0x10, WRITE = 0x11, COMMIT = 0x12;
const REPLIES = { // by kind: the request that it belongs to, its name, and how its body begins [7]
  0x82: [CLUSTER_INFO, "CLUSTER", record({ ...SHAPE, members: list(u16, MEMBER) })],
  0x83: [GET_MAP, "MAP", record({ epoch: u64, rows: list(u32, ROW) })],
  0x84: [NEXT_PRIMARY, "OWNERS", record({ row: ROW, members: list(u16, MEMBER) })],
  0x90: [GET, "ENTRY", record({ time: u64, client: u64, counter: u32, flags: u8 })],
  0x91: [GET, "NOT_FOUND", record({})],
  0x92: [WRITE, "ACK", record({})],
  0x93: [WRITE, "SUPERSEDED", record({ time: u64, client: u64 })],
  0xff: ["any", "ERROR", record({ code: u16, text })],
};
const COMMITTED = 1, ORDERED = 2, TOMBSTONE = 4, EXPIRES = 8; // flags of an entry [2]
const NOT_READY = 11, STALE_EPOCH = 12, TOO_FAR = 15, NO_SPACE = 16, INTERNAL = 18, TOO_OLD = 19;
const NO_RETRY = [1, 2, 3, 4, 5, 6, 8, 10, 14, 17], CLOSES = [1, 2, 3, 7, 8, 9, 18]; // errors [8]
const MANAGER = 0; // among the numbers of nodes, which begin with 1

const bytes = (size, n) => Buffer.from(n.toString(16).padStart(2 * size, "0"), "hex");
const keyed = (key) => Buffer.concat([bytes(2, key.length), key]);
const clusterOf = (epoch) => epoch >> 32n;
const isHeld = ({ name }) => name === "ACK" || name === "SUPERSEDED";

function decode(request, kind, body) {
  const [owner, name, fields] = REPLIES[kind] ?? [], from = { body, at: 0 };
  if (name !== "ERROR" && owner !== request) throw new Error("a reply to some other request");
  const answer = { name, body, ...fields(from), rest: body.subarray(from.at) };
  if (answer.code === STALE_EPOCH) answer.row = ROW(from);
  // A code of a later version, too, may mean that it was done [4].
  answer.maybe = answer.code === INTERNAL || answer.code > TOO_OLD;
  return answer;
}

class Connection { // for one request at a time: the others wait for their turn
  constructor({ node, host, port }) {
    this.socket = net.connect({ host, port, noDelay: true }, () => { this.isOpen = true; });
    this.socket.on("error", () => {}).unref(); // whoever reads gets it; it keeps no program alive
    this.chunks = this.socket[Symbol.asyncIterator]();
    Object.assign(this, { node, isOpen: false, bytes: Buffer.alloc(0), turn: Promise.resolve() });
  }
  /** Resolves, always: with the reply, or with what became of the request without one. */
  ask(kind, parts, deadline) {
    // The late reply must not be taken for another one's: no answer ends the connection [5].
    const expire = () => this.socket.destroy(new Error("no answer in time"));
    const timer = setTimeout(expire, deadline - performance.now());
    const answer = this.turn.then(() => this.exchange(kind, parts));
    return (this.turn = answer.finally(() => clearTimeout(timer)));
  }
  async exchange(kind, parts) {
    let maybe = !this.socket.destroyed; // otherwise it ended before our turn: nothing is sent
    try {
      this.send(kind, 1, parts); // one at a time: they may all have the same id
      const header = await this.read(12), size = header.readUInt32BE(8);
      const isFrame = header.readUInt16BE(0) === 0xc701 && size <= 16_778_228; // [9]
      if (!isFrame) throw new Error("what it answers is no frame");
      const answer = decode(kind, header[2], await this.read(size)), id = header.readUInt32BE(4);
      if (id === 0) maybe = false; // about the connection: what is awaited was not done [5]
      if (id !== 1) throw new Error(answer.text ?? "a reply that nobody awaits");
      if (CLOSES.includes(answer.code)) this.socket.destroy();
      return answer;
    } catch (error) {
      this.socket.destroy();
      return { node: this.node, isLost: true, maybe: maybe && this.isOpen, text: error.message };
    }
  }
  send(kind, id, parts) { // [3]
    const body = Buffer.concat(parts), start = Buffer.from([0xc7, 1, kind, 0]);
    this.socket.write(Buffer.concat([start, bytes(4, id), bytes(4, body.length), body]));
  }
  async read(size) {
    while (this.bytes.length < size) {
      const { value, done } = await this.chunks.next();
      if (done) throw new Error("the connection was closed");
      this.bytes = Buffer.concat([this.bytes, value]);
    }
    const taken = this.bytes.subarray(0, size);
    this.bytes = this.bytes.subarray(size);
    return taken;
  }
}

export class Client {
  static async connect(host, port, { timeoutMs = 5000 } = {}) {
    const client = Object.assign(new Client(), { timeoutMs, shiftMs: 0, connections: new Map() });
    client.members = new Map([[MANAGER, { node: MANAGER, host, port }]]);
    return client.init(client.newCall());
  }
  close() { // when no call is under way; what was sent is handled after our end, too [5]
    for (const { socket } of this.connections.values()) socket.destroySoon();
  }
  put(key, value) { return this.write(bytesOf(key, 1, 500), bytesOf(value, 0, 16_777_216), 0); }
  delete(key) { return this.write(bytesOf(key, 1, 500), Buffer.alloc(0), TOMBSTONE); }

  async get(text) { // [10.4]
    const key = bytesOf(text, 1, 500), call = this.newCall();
    for (;;) {
      const row = this.rowOf(key), [primary, ...others] = row.owners;
      let answers = await this.round(GET, row, [primary], key, Buffer.alloc(0), call);
      const { name, flags, body: entry, rest } = answers[0];
      if (name === "NOT_FOUND") return null;
      if (name === "ENTRY") {
        const value = flags & TOMBSTONE ? null : rest.subarray(flags & EXPIRES ? 8 : 0);
        if (flags & COMMITTED) return value;
        // Pending: some owner may not hold it, and then it could vanish with the primary.
        answers = await this.round(WRITE, row, others, key, entry, call);
        if (answers.every(isHeld)) return this.commit(row, key, entry), value;
      }
      await this.learn(answers, row, key, call);
    }
  }

  async write(key, value, flags) { // [10.3]: the same names as there
    // Client and counter are drawn for each write, so that no version is ever used twice [10.2].
    const call = this.newCall(), rid = randomBytes(12);
    let row = this.rowOf(key), time = this.newTime(), versions = 1;
    let acked = false, unresolved = false;
    for (;;) {
      const entry = Buffer.concat([bytes(8, time), rid, bytes(1, flags), value]);
      const answers = await this.round(WRITE, row, row.owners, key, entry, call, acked);
      const primary = answers[0];
      acked ||= primary.name === "ACK";
      unresolved ||= primary.maybe;
      call.touched ||= answers.some(({ name, maybe }) => name === "ACK" || maybe);
      if (acked && answers.every(isHeld)) return this.commit(row, key, entry);
      const refusal = answers.find(({ code }) => [TOO_FAR, NO_SPACE, TOO_OLD].includes(code));
      if (refusal && !call.touched) {
        if (refusal.code === NO_SPACE || call.isTimeNew) giveUp(call, refusal.text);
        call.isTimeNew = true; // once in a call [10.3]
        const { time: now, since } = await this.shape(call.deadline);
        if (now !== undefined) Object.assign(this, { time: now, since });
        time = this.newTime(refusal.code === TOO_OLD ? refusal.rest.readBigUInt64BE() + 1n : 0n);
        continue;
      }
      if (primary.code === TOO_OLD) giveUp(call, primary.text);
      await this.learn(answers, row, key, call);
      const next = this.rowOf(key); // only now: another call may have brought a newer one
      if (next.primaryEpoch !== row.primaryEpoch) { // another tenure
        if (call.touched && versions > 1) giveUp(call, "another primary, after two versions");
        [acked, unresolved] = [false, call.touched];
      } else if (primary.name === "SUPERSEDED" && !acked) {
        // The unanswered one may be older than what refuses this one: it could happen twice.
        if (unresolved) giveUp(call, "overtaken, while an answer was missing");
        const step = versions === 1 ? 1n : 1000n << BigInt(Math.min(versions, 10)); // [10.7]
        time = this.newTime(primary.time + step);
        [flags, versions] = [flags | ORDERED, versions + 1];
      }
      row = next;
    }
  }

  /** Asks these owners: at once, or with an ordered entry one by one, and not past a refusal. */
  async round(kind, row, owners, key, entry, call, acked = true) {
    const parts = [bytes(8, row.listEpoch), bytes(4, row.partition), keyed(key), entry];
    const answers = [];
    for (const { node } of owners) {
      answers.push(this.to(node).ask(kind, parts, call.deadline));
      if (!(entry[20] & ORDERED)) continue;
      const answer = await answers.at(-1);
      acked ||= answer.name === "ACK";
      if (!acked || !isHeld(answer)) break;
    }
    return Promise.all(answers);
  }
  /** Tells the owners that all of them hold it: it saves the next reader a round trip [10.3]. */
  commit(row, key, entry) {
    const nodes = row.owners.map(({ node }) => node);
    const parts = [bytes(4, row.partition), entry.subarray(0, 16), keyed(key)];
    for (const node of nodes) this.to(node).send(COMMIT, 0, parts);
    return nodes;
  }

  /** Does what the answers ask for, and pauses unless that has brought a newer row [10.5]. */
  async learn(answers, row, key, call) {
    const news = [...answers], half = (performance.now() + call.deadline) / 2;
    for (const { node, isLost, maybe } of answers) {
      // It may only have been an old connection: the first time, just try a new one.
      if (!isLost || (maybe && call.pauses === 0)) continue;
      news.push(await this.to(MANAGER).ask(NEXT_PRIMARY, [bytes(2, node), keyed(key)], half));
    }
    for (const { code, text, row: theirs, members = [] } of news) {
      if (NO_RETRY.includes(code)) giveUp(call, text);
      for (const member of members) this.members.set(member.node, member);
      if (!theirs) continue;
      const { partition, listEpoch } = theirs;
      if (clusterOf(listEpoch) !== clusterOf(this.rows[0].listEpoch)) await this.init(call);
      else if (listEpoch > this.rows[partition].listEpoch) this.rows[partition] = theirs;
    }
    if (this.rowOf(key) === row) await pause(call, news.find(({ text }) => text)?.text);
  }
  async shape(deadline) { // CLUSTER, and about when the manager read its clock
    const asked = performance.now();
    const shape = await this.to(MANAGER).ask(CLUSTER_INFO, [], deadline);
    return { ...shape, since: (asked + performance.now()) / 2 };
  }
  async init(call) { // [10.2]
    for (;;) {
      const shape = await this.shape(call.deadline);
      const map = await this.to(MANAGER).ask(GET_MAP, [bytes(8, 0)], call.deadline);
      const { isLost, maybe, code, text } = "text" in shape ? shape : map;
      const isOfOne = text === undefined && clusterOf(shape.epoch) === clusterOf(map.epoch);
      if (isOfOne && shape.partitions === map.rows.length) {
        if (!HASHES[shape.hash]) giveUp(call, `hash ${shape.hash} is not known here`);
        for (const member of shape.members) this.members.set(member.node, member);
        Object.assign(this, { rows: map.rows, hash: HASHES[shape.hash] });
        return Object.assign(this, { time: shape.time, since: shape.since });
      }
      const isNobody = isLost && !maybe && !this.rows; // a new client does not wait for a manager
      if (isNobody || (code && code !== NOT_READY)) giveUp(call, text);
      await pause(call, text ?? "two halves of two clusters");
    }
  }

  newCall() { return { deadline: performance.now() + this.timeoutMs, pauses: 0, touched: false }; }
  rowOf(key) { return this.rows[this.hash(key) % this.rows.length]; } // [10.1]
  newTime(above = 0n) { // cluster time: the manager's, carried on by a clock that nobody sets [10.2]
    const ms = performance.now() - this.since + this.shiftMs;
    const clock = this.time + BigInt(Math.floor(1000 * ms));
    return clock > above ? clock : above;
  }
  to(node) {
    const member = this.members.get(node), name = `${member.host} ${member.port}`;
    const known = this.connections.get(name);
    if (known?.socket.destroyed === false) return known;
    return this.connections.set(name, new Connection(member)).get(name);
  }
}

function giveUp(call, why) {
  throw new (call.touched ? OutcomeUnknown : DidNotHappen)(why);
}

/** 1 ms, doubled each time up to 50 ms, half of it random; gives up if the deadline is sooner. */
async function pause(call, why = "no success in time") {
  const ms = Math.min(50, 2 ** call.pauses++) * (0.5 + Math.random() / 2);
  if (performance.now() + ms >= call.deadline) giveUp(call, why);
  await sleep(ms);
}

const HASHES = { // [10.1]
  1: (key) => key.reduce((sum, byte) => sum + byte, 0),
  2: (key) => key.reduce((crc, byte) => {
    crc ^= byte << 8;
    for (let bit = 0; bit < 8; bit++) crc = (crc << 1) ^ (crc & 0x8000 ? 0x1021 : 0);
    return crc & 0xffff;
  }, 0),
};

function bytesOf(data, min, max) {
  const bytes = Buffer.from(data);
  if (bytes.length >= min && bytes.length <= max) return bytes;
  throw new RangeError(`${min} to ${max} bytes are allowed, not ${bytes.length}`);
}
