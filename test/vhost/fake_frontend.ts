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
  type RegionDescription,
  regionPayload,
  u64Payload,
  vringAddresses,
  vringFd,
  vringState,
} from '../../src/probe/frontend_connection.ts';
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

  stop(queues: readonly number[]): number[] {
    for (const queue of queues) {
      if (!this.running.delete(queue)) throw new Error(`queue ${queue} is stopped twice`);
      this.said.push(`stop ${queue}`);
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
