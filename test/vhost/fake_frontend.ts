/** A frontend's messages straight to a session, and queue threads that only keep books. */
import { readdirSync, readFileSync } from 'node:fs';
import { openLibrary, shim } from '../../ffi/library.ts';
import { BlockConfig, offeredFeatures } from '../../src/frontend/vhost/block_config.ts';
import type { MemoryRegion } from '../../src/frontend/vhost/guest_memory.ts';
import { Request } from '../../src/frontend/vhost/protocol.ts';
import type { RingStart } from '../../src/frontend/vhost/queue_link.ts';
import { type QueueControl, type Reply, Session } from '../../src/frontend/vhost/session.ts';
import { availBytes, usedBytes } from '../../src/frontend/vhost/virtqueue.ts';
import {
  configPayload,
  type RegionDescription,
  regionPayload,
  tablePayload,
  u64Payload,
  vringAddresses,
  vringFd,
  vringState,
} from '../../src/probe/frontend_connection.ts';
import type { Random } from '../random.ts';
import { diskFacts } from './fake_guest.ts';

openLibrary();

export const MEMFD = 'ubiblk-test-guest';
export const NEED_REPLY = 1 | 8;
export const MIB = 1 << 20;
/** Where the guest and the frontend have the region of `Frontend.addMemory`. */
export const GUEST = 0x1_0000_0000;
export const USER = 0x7f00_0000_0000;

/** Holds the session to its side of the contract with the queue threads. */
export class FakeQueues implements QueueControl {
  readonly running = new Map<number, RingStart>();
  readonly said: string[] = [];
  /** What was to become of those who wait, at each stop of a ring. */
  readonly waiting: number[] = [];
  regions: readonly MemoryRegion[] = [];
  writeback = true;
  flushes = 0;
  /** Next available indexes that stops answer. */
  base = 0;

  start(queue: number, ring: RingStart): void {
    if (this.running.has(queue)) throw new Error(`queue ${queue} is started while it runs`);
    const { size, descriptors, available, used } = ring;
    for (const [address, length, align] of [
      [descriptors, size * 16, 16],
      [available, availBytes(size), 2],
      [used, usedBytes(size), 4],
    ]) {
      const inside = this.regions.some(
        (r) => address >= r.address && address + length <= r.address + r.size,
      );
      if (!inside || address % align !== 0) throw new Error('a ring in a wrong place');
    }
    this.running.set(queue, ring);
    this.said.push(`start ${queue}`);
  }

  stop(queues: readonly number[], waiting: number): number[] {
    for (const queue of queues) {
      if (!this.running.delete(queue)) throw new Error(`queue ${queue} is stopped twice`);
      this.said.push(`stop ${queue}`);
      this.waiting.push(waiting);
    }
    return queues.map(() => this.base);
  }

  setCall(queue: number, callFd: number): void {
    const ring = this.running.get(queue);
    if (!ring) throw new Error(`queue ${queue} gets a call descriptor while it is stopped`);
    ring.callFd = callFd;
    this.said.push(`call ${queue}`);
  }

  setRegions(regions: readonly MemoryRegion[]): void {
    if (this.running.size > 0) throw new Error('regions change under running queues');
    this.regions = [...regions];
  }

  setWriteback(on: boolean): void {
    this.writeback = on;
  }

  flush(): void {
    this.flushes++;
  }
}

export interface FrontendOptions {
  numQueues?: number;
  queueSize?: number;
  /** Leaves the negotiation out. */
  raw?: boolean;
}

export class Frontend {
  readonly queues = new FakeQueues();
  readonly config: BlockConfig;
  readonly session: Session;

  constructor(options: FrontendOptions = {}) {
    const { numQueues = 2, queueSize = 256 } = options;
    const facts = diskFacts();
    this.config = new BlockConfig(facts, { numQueues, segSizeMax: 65536, segCountMax: 128 });
    const features = offeredFeatures(facts);
    this.session = new Session({ features, numQueues, queueSize }, this.config, this.queues);
    if (options.raw) return;
    this.say(Request.SET_FEATURES, u64Payload(features));
    this.say(Request.SET_PROTOCOL_FEATURES, u64Payload(0x9209));
  }

  /** Hands a message over; its descriptors go with it. @throws ProtocolError */
  say(
    request: number,
    payload: Uint8Array = new Uint8Array(0),
    fds: number[] = [],
    flags = 1,
  ): Reply | null {
    const view = new DataView(payload.buffer, payload.byteOffset, payload.length);
    return this.session.handle({ request, flags, payload: view, fds });
  }

  /** The payload of the answer to a message. */
  ask(request: number, payload?: Uint8Array, fds?: number[]): DataView {
    const reply = this.say(request, payload, fds) as Reply;
    if (reply.fd >= 0) shim.ubiblk_close(reply.fd);
    return new DataView(reply.bytes.buffer, 12);
  }

  addMemory(region: Partial<RegionDescription> = {}, fileBytes = MIB): void {
    const description = {
      guestAddress: GUEST,
      length: MIB,
      userAddress: USER,
      fileOffset: 0,
      ...region,
    };
    this.say(Request.ADD_MEM_REG, regionPayload(description), [memoryFile(fileBytes)]);
  }

  /** Says all that a ring needs before it runs, but its kick descriptor and that it is enabled. */
  describeRing(index: number, size = 16, at = index * 0x10000): void {
    this.say(Request.SET_VRING_NUM, vringState(index, size));
    this.say(Request.SET_VRING_BASE, vringState(index, 0));
    const addresses = vringAddresses(index, USER + at, USER + at + 0x8000, USER + at + 0x4000);
    this.say(Request.SET_VRING_ADDR, addresses);
    this.say(Request.SET_VRING_CALL, vringFd(index), [shim.ubiblk_eventfd()]);
  }

  startRing(index: number, size?: number): void {
    this.describeRing(index, size);
    this.say(Request.SET_VRING_KICK, vringFd(index), [shim.ubiblk_eventfd()]);
    this.say(Request.SET_VRING_ENABLE, vringState(index, 1));
  }
}

export function memoryFile(bytes: number): number {
  return shim.ubiblk_memory_memfd(Buffer.from(`${MEMFD}\0`), bytes);
}

/** Descriptors of this process, and its mappings of guest and in-flight memory. */
export function held(): { descriptors: number; mappings: number } {
  const maps = readFileSync('/proc/self/maps', 'utf8');
  return {
    descriptors: readdirSync('/proc/self/fd').length,
    mappings: (maps.match(/\/memfd:(ubiblk-test-guest|ubiblk-inflight)/g) ?? []).length,
  };
}

/** Of GET_INFLIGHT_FD and SET_INFLIGHT_FD. */
export function inflightPayload(
  size: number | bigint,
  offset: number | bigint,
  queues: number,
  entries: number,
) {
  const payload = u64Payload(size, offset, 0);
  const view = new DataView(payload.buffer);
  view.setUint16(16, queues, true);
  view.setUint16(18, entries, true);
  return payload;
}

/** A message that is right in most of its parts. */
export function randomMessage(
  random: Random,
): [request: number, payload: Uint8Array, fds: number[]] {
  const queue = random.pick([0, 0, 1, 1, 2, 255]);
  const address = () => USER + random.pick([0, 0x4000, 0x8000, 0x10000, 8, 1, MIB, MIB - 16]);
  const region = {
    guestAddress: random.pick([0, GUEST, GUEST + MIB, 2n ** 63n]),
    length: random.pick([MIB, MIB, 4096, 0, 2n ** 40n]),
    userAddress: random.pick([USER, USER, USER + MIB, 0]),
    fileOffset: random.pick([0, 0, 0, 4096, 1]),
  };
  const fd = () =>
    random.chance(8) ? memoryFile(random.pick([0, 4096, MIB, 2 * MIB])) : shim.ubiblk_eventfd();
  const fds = (usual: number[]) => {
    if (!random.chance(8)) return usual;
    for (const unused of usual) shim.ubiblk_close(unused);
    return Array.from({ length: random.below(4) }, fd);
  };
  const file = () => [memoryFile(random.pick([MIB, 2 * MIB, 4096]))];
  const state = () => vringState(queue, random.pick([0, 1, 1, 16, 256, 3, 0xffff_ffff]));
  const addresses = () => vringAddresses(queue, address(), address(), address());
  switch (random.below(14)) {
    case 0:
      return [Request.SET_FEATURES, u64Payload(random.pick([0x1_7000_1e46n, 1n << 32n, 1n])), []];
    case 1:
      return [Request.SET_MEM_TABLE, tablePayload([region]), fds(file())];
    case 2:
    case 3:
      return [Request.ADD_MEM_REG, regionPayload(region), fds(file())];
    case 4:
      return [Request.REM_MEM_REG, regionPayload(region), []];
    case 5:
      return [Request.SET_VRING_NUM, state(), []];
    case 6:
      return [Request.SET_VRING_ADDR, addresses(), []];
    case 7:
      return [random.pick([Request.SET_VRING_BASE, Request.GET_VRING_BASE]), state(), []];
    case 8:
      return [Request.SET_VRING_KICK, vringFd(queue), fds([shim.ubiblk_eventfd()])];
    case 9:
      return [Request.SET_VRING_CALL, vringFd(queue), fds([shim.ubiblk_eventfd()])];
    case 10:
      return [Request.SET_VRING_ENABLE, vringState(queue, random.below(2)), []];
    case 11: {
      const payload = inflightPayload(random.pick([MIB, 4096, 0]), random.pick([0, 64, 1]), 2, 16);
      return [Request.SET_INFLIGHT_FD, payload, fds(file())];
    }
    case 12:
      return [Request.SET_CONFIG, configPayload(random.below(64), random.below(64)), []];
    default: {
      const payload = new Uint8Array(random.below(64));
      for (let i = 0; i < payload.length; i++) payload[i] = random.next();
      return [random.below(45), payload, fds([])];
    }
  }
}
