/**
 * The control thread: accepts one frontend at a time and does what its messages ask. It blocks in
 * poll(2); whatever a frontend does wrong closes that frontend's connection and nothing else.
 */
import { EAGAIN, errnoName } from '../../../ffi/errno.ts';
import { attachLibrary, shim } from '../../../ffi/library.ts';
import { Log } from '../../log.ts';
import type { WorkerAnswer } from '../thread.ts';
import { BlockConfig, featureNames, offeredFeatures } from './block_config.ts';
import {
  FLAG_VERSION_MASK,
  HEADER_BYTES,
  largestRing,
  MAX_PAYLOAD,
  ProtocolError,
  requestName,
  VERSION,
} from './protocol.ts';
import { Command, QueueLink, SharedState, Waiting } from './queue_link.ts';
import type { ControlStart } from './server.ts';
import { type Message, type QueueControl, type Reply, Session } from './session.ts';

declare const self: Worker;

/** A frontend that stops in the middle of a message is given up after this. */
const MESSAGE_TIMEOUT_MS = 10_000;

/** What waits at a stop for what may be long in coming is failed after this. */
const STOP_PATIENCE_MS = 3000;
/** How often a stop that takes long looks whether the frontend is still there. */
const LOOK_MS = 100;

const READY_STOP = 1;
const READY_CONNECTION = 2;
const READY_LISTENER = 4;

self.onmessage = (event: MessageEvent<ControlStart>) => {
  attachLibrary(event.data.libraryFd);
  shim.ubiblk_name_thread(Buffer.from('vhost control\0'));
  const control = new Control(event.data);
  answer({ kind: 'ready' });
  control.run();
  answer({ kind: 'ended' });
};

function answer(message: WorkerAnswer): void {
  self.postMessage(message);
}

/** Commands the queue threads. */
class QueueThreads implements QueueControl {
  private readonly links: QueueLink[];
  private readonly shared: SharedState;

  /** @param isGone whether the frontend has gone */
  constructor(
    private readonly start_: ControlStart,
    private readonly isGone: () => boolean,
  ) {
    this.shared = new SharedState(start_.shared);
    this.links = start_.wakeFds.map((_, i) => new QueueLink(start_.shared, i));
  }

  start: QueueControl['start'] = (queue, ring) => {
    this.links[queue].ring = ring;
    this.post(queue, Command.START);
    this.links[queue].await();
  };

  stop: QueueControl['stop'] = (queues, waiting) => {
    const set = (how: number) => {
      for (const queue of queues) this.links[queue].waiting = how;
    };
    set(waiting);
    for (const queue of queues) this.post(queue, Command.STOP);
    const deadlineMs = performance.now() + STOP_PATIENCE_MS;
    while (!queues.every((queue) => this.links[queue].isAnswered(LOOK_MS))) {
      if (this.isGone()) set(Waiting.LEAVE);
      else if (performance.now() > deadlineMs) set(waiting | Waiting.FAIL);
      else continue;
      for (const queue of queues) this.wake(queue);
    }
    return queues.map((queue) => this.links[queue].await());
  };

  setCall: QueueControl['setCall'] = (queue, callFd) => {
    this.links[queue].callFd = callFd;
    this.post(queue, Command.CALL);
    this.links[queue].await();
  };

  setRegions: QueueControl['setRegions'] = (regions) => {
    this.shared.regions = regions;
  };

  setWriteback: QueueControl['setWriteback'] = (on) => {
    this.shared.writeback = on;
  };

  /** For whoever looks from outside. */
  setConnected(yes: boolean): void {
    this.shared.connected = yes;
  }

  flush: QueueControl['flush'] = () => {
    if (this.start_.facts.fd < 0 || this.start_.facts.readOnly) return;
    const result = shim.ubiblk_fdatasync(this.start_.facts.fd);
    if (result < 0) throw new ProtocolError(`flush failed with ${errnoName(result)}`);
  };

  end(): void {
    for (let queue = 0; queue < this.links.length; queue++) this.post(queue, Command.EXIT);
    for (const link of this.links) link.await();
  }

  private post(queue: number, command: (typeof Command)[keyof typeof Command]): void {
    this.links[queue].post(command);
    this.wake(queue);
  }

  private wake(queue: number): void {
    shim.ubiblk_eventfd_signal(this.start_.wakeFds[queue]);
  }
}

/** Thrown where the frontend has gone. */
class Disconnected extends Error {}

class Control {
  private readonly log: Log;
  private readonly queues: QueueThreads;
  private readonly config: BlockConfig;
  private readonly features: bigint;
  private readonly polled = Int32Array.of(-1, -1, -1);
  private readonly fds = new Int32Array(32);
  private readonly fdCount = new Uint32Array(1);
  private connection = -1;
  private refusedOther = false;
  private session: Session | null = null;

  constructor(private readonly start: ControlStart) {
    const { facts, options } = start;
    this.log = new Log(start.log, 'vhost');
    this.queues = new QueueThreads(start, () => this.isGone());
    this.features = offeredFeatures(facts);
    this.config = new BlockConfig(facts, options);
    this.log.debug('offered', { features: featureNames(this.features).join(' ') });
  }

  /** Serves one frontend after the other until the stop descriptor is signalled. */
  run(): void {
    for (;;) {
      const ready = this.wait(this.start.listenFd, -1);
      if (ready & READY_STOP) break;
      // The end of a connection is looked at before the next frontend, which may be its successor.
      if (ready & READY_CONNECTION) this.receive();
      if (ready & READY_LISTENER) this.accept();
    }
    // The frontend is still there: what it has no record of must be answered.
    this.disconnect(true);
    this.queues.end();
  }

  private wait(listenFd: number, timeoutMs: number): number {
    this.polled[0] = this.start.stopFd;
    this.polled[1] = this.connection;
    this.polled[2] = listenFd;
    return shim.ubiblk_poll(this.polled, 3, timeoutMs);
  }

  private accept(): void {
    const fd = shim.ubiblk_socket_accept(this.start.listenFd);
    if (fd < 0) return;
    if (this.connection >= 0) {
      // Once for each that is connected: whoever is refused may try without end.
      if (!this.refusedOther) this.log.warn('a second frontend was refused: one is connected');
      this.refusedOther = true;
      shim.ubiblk_close(fd);
      return;
    }
    this.connection = fd;
    this.queues.setConnected(true);
    this.refusedOther = false;
    const { numQueues, queueSize } = this.start.options;
    // A new guest starts with the cache mode that the configuration says.
    this.config.writeback = !this.start.facts.writeThrough;
    this.queues.setWriteback(this.config.writeback);
    this.session = new Session(
      {
        features: this.features,
        numQueues,
        queueSize: largestRing(queueSize),
      },
      this.config,
      this.queues,
    );
    this.log.info('a frontend has connected');
  }

  private isGone(): boolean {
    return this.connection >= 0 && shim.ubiblk_socket_gone(this.connection) === 1;
  }

  private disconnect(goingOn = false): void {
    if (this.connection < 0) return;
    this.session?.close(goingOn);
    this.session = null;
    shim.ubiblk_close(this.connection);
    this.connection = -1;
    this.queues.setConnected(false);
  }

  private receive(): void {
    const session = this.session as Session;
    let message: Message | null = null;
    try {
      message = this.read();
      this.log.debug(requestName(message.request), { bytes: message.payload.byteLength });
      const reply = session.handle(message);
      if (reply) this.send(reply);
    } catch (error) {
      const { message: text } = error as Error;
      if (error instanceof Disconnected) {
        this.log.info('the frontend has disconnected');
      } else if (error instanceof ProtocolError) {
        const refusal = message && session.refusal(message);
        if (refusal) this.send(refusal, true);
        this.log.error(`the frontend's connection is closed: ${text}`);
      } else {
        this.log.error(`the frontend's connection is closed by an internal error: ${text}`);
        this.log.debug((error as Error).stack ?? '');
      }
      this.disconnect();
    }
  }

  /** Reads one whole message. @throws Disconnected, ProtocolError */
  private read(): Message {
    const fds: number[] = [];
    try {
      const header = this.readBytes(HEADER_BYTES, fds);
      const request = header.getUint32(0, true);
      const flags = header.getUint32(4, true);
      const length = header.getUint32(8, true);
      if ((flags & FLAG_VERSION_MASK) !== VERSION) {
        throw new ProtocolError(`a message of protocol version ${flags & FLAG_VERSION_MASK}`);
      }
      if (length > MAX_PAYLOAD) {
        throw new ProtocolError(`${requestName(request)} with ${length} bytes`);
      }
      return { request, flags, payload: this.readBytes(length, fds), fds };
    } catch (error) {
      for (const fd of fds) shim.ubiblk_close(fd);
      throw error;
    }
  }

  private readBytes(length: number, fds: number[]): DataView {
    const bytes = new Uint8Array(length);
    let done = 0;
    while (done < length) {
      const part = bytes.subarray(done);
      const got = shim.ubiblk_socket_receive(
        this.connection,
        part,
        part.length,
        this.fds,
        this.fdCount,
      );
      for (let i = 0; i < this.fdCount[0]; i++) fds.push(this.fds[i]);
      if (got === -EAGAIN) this.awaitMore();
      else if (got <= 0) throw new Disconnected();
      else done += got;
    }
    return new DataView(bytes.buffer);
  }

  private awaitMore(): void {
    const ready = this.wait(-1, MESSAGE_TIMEOUT_MS);
    if (ready & READY_STOP) throw new Disconnected();
    if (ready === 0) throw new ProtocolError('a message that does not end');
  }

  private send(reply: Reply, last = false): void {
    const fds = Int32Array.of(reply.fd);
    const count = reply.fd >= 0 ? 1 : 0;
    const { bytes } = reply;
    const sent = shim.ubiblk_socket_send(this.connection, bytes, bytes.length, fds, count);
    if (reply.fd >= 0) shim.ubiblk_close(reply.fd);
    // Replies are few and small: a socket that takes none has a frontend that reads none.
    if (sent !== bytes.length && !last) throw new Disconnected();
  }
}
