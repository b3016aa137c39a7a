/**
 * Fetches every stripe of a server, as many at a time as it has connections, and throws them away.
 * Prints bytes, seconds and the processor seconds that it took, and keeps its connections until it is ended.
 *
 *   bun bench/remote_client.ts ADDRESS CONNECTIONS [IDENTITY SECRET-IN-HEX]
 */
import { Secret } from '../src/crypto/secret.ts';
import { Log } from '../src/log.ts';
import { nativeMemory } from '../src/remote/channel.ts';
import { StripeConnection } from '../src/remote/connection.ts';
import { RemoteSource } from '../src/remote/remote_source.ts';

const [address, count, identity, secret] = process.argv.slice(2);
const connections = Number(count);
const psk = identity && {
  psk: { identity, secret: Secret.taking(Uint8Array.from(Buffer.from(secret, 'hex'))) },
};
const options = { address, connectMs: 10_000, operationMs: 20_000, ...psk };

const first = await StripeConnection.open(options);
const { stripeBytes, headers } = first.stripes;
first.close();
const log = new Log({ level: 'error', format: 'human' }, 'bench');
const source = await RemoteSource.open({ ...options, connections, stripeBytes }, log);
const never = new AbortController().signal;

let next = 0;

async function fetchSome(): Promise<void> {
  const memory = nativeMemory(stripeBytes);
  while (next < headers.length) await source.read(next++, memory, never);
}

const cpu = process.cpuUsage();
const from = performance.now();
await Promise.all(Array.from({ length: connections }, fetchSome));
const seconds = (performance.now() - from) / 1000;
const { user, system } = process.cpuUsage(cpu);
const bytes = headers.length * stripeBytes;
console.log(JSON.stringify({ bytes, seconds, cpuSeconds: (user + system) / 1e6 }));
await new Promise(() => {});
