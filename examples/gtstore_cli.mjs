#!/usr/bin/env node
// Puts and gets from a shell, with the client of gtstore.mjs:
//   node gtstore_cli.mjs HOST:PORT put KEY VALUE | get KEY | delete KEY
// or without a command: one on each line of standard input.
import readline from "node:readline";
import { Client, OutcomeUnknown } from "./gtstore.mjs";

async function run(client, [command, key, value]) {
  if (command === "shift-clock") return client.shiftMs = Number(key), "ok"; // for tests
  if (command === "get") return (await client.get(key)) ?? null;
  const isPut = command === "put";
  const nodes = await (isPut ? client.put(key, value) : client.delete(key));
  return `key ${key} ${isPut ? "stored" : "deleted"} at storage nodes: ${nodes.join(" ")}`;
}

async function main([address = "", ...words]) {
  const [, host, port] = /^(.+):(\d+)$/.exec(address) ?? [];
  if (!host || (words.length && words.length !== { put: 3, get: 2, delete: 2 }[words[0]])) {
    console.error("usage: gtstore_cli.mjs HOST:PORT [put KEY VALUE | get KEY | delete KEY]");
    return 2;
  }
  let client;
  try {
    client = await Client.connect(host, Number(port));
    if (words.length) return print(await run(client, words), words);
    for await (const line of readline.createInterface({ input: process.stdin })) {
      const typed = line.split(" ");
      try {
        print(await run(client, typed), typed);
      } catch (error) {
        console.log(`error: ${error.message}`);
      }
    }
    return 0;
  } catch (error) {
    console.error(error.message);
    return error instanceof RangeError ? 2 : error instanceof OutcomeUnknown ? 4 : 3;
  } finally {
    await client?.close();
  }
}

function print(answer, [, key]) {
  if (answer === null) return console.error(`key ${key} not found`), 1;
  process.stdout.write(Buffer.concat([Buffer.from(answer), Buffer.from("\n")]));
  return 0;
}

process.exitCode = await main(process.argv.slice(2));
