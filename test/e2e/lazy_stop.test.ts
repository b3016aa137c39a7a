/**
 * Rings that stop while their requests wait for a source that is away: frontends get their answers in
 * seconds, guests theirs, and nothing is lost that a record was kept of.
 */
import { expect } from 'bun:test';
import { Request } from '../../src/frontend/vhost/protocol.ts';
import { regionPayload, vringFd, vringState } from '../../src/probe/frontend_connection.ts';
import { failed, type Lazy, lazyDisk, Outage } from './lazy.ts';
import { connect, IOERR, Machine, NO_STATUS, OK, T_OUT } from './machine.ts';
import { Bed, type Server, testWith } from './support.ts';

const MIB = 1 << 20;
/** Of 256 KiB. */
const shift = 9;
const SECTOR_OF = (stripe: number) => stripe << shift;

/** A machine with a write that waits for stripe 3, and a server whose image is away. */
class Waiting implements AsyncDisposable {
  private constructor(
    readonly bed: Bed,
    readonly lazy: Lazy,
    readonly away: Outage,
    readonly server: Server,
    readonly machine: Machine,
  ) {}

  static async begin(recorded: boolean): Promise<Waiting> {
    const bed = new Bed();
    const lazy = await lazyDisk(bed, { shift, sizeBytes: 8 * MIB, imageBytes: 4 * MIB });
    const away = new Outage(lazy.image);
    const server = await bed.serve(lazy.disk, lazy.settings);
    away.begin();
    const machine = new Machine(server, 64, 1, recorded);
    machine.prepare(0, 0, SECTOR_OF(3), T_OUT);
    machine.offer(0, 0);
    await failed(server, lazy.rpc, 1, 3);
    return new Waiting(bed, lazy, away, server, machine);
  }

  get status(): number {
    return this.machine.status(0, 0);
  }

  /** The image is back: the ring that is started anew works. */
  goOn(): void {
    this.away.end();
    this.machine.startQueue(0);
    expect(this.machine.read(0, SECTOR_OF(5))).toBe(OK);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.machine.close();
    await this.bed[Symbol.asyncDispose]();
  }
}

const addMemory = regionPayload({
  guestAddress: 0x9_0000_0000,
  length: 4 * MIB,
  userAddress: 0x1000_0000,
  fileOffset: 0,
});

/** Ways to take a ring away, each of which returns when it is done. */
const taken: Record<string, (machine: Machine) => void> = {
  GET_VRING_BASE: ({ connection }) => connection.ask(Request.GET_VRING_BASE, vringState(0, 0)),
  SET_VRING_ENABLE: ({ connection }) =>
    connection.askAck(Request.SET_VRING_ENABLE, vringState(0, 0)),
};

for (const [name, take] of Object.entries(taken)) {
  for (const recorded of [false, true]) {
    testWith(
      `a ring that is taken away fails what waits: ${name}${recorded ? ', with a record' : ''}`,
      [],
      async () => {
        await using waiting = await Waiting.begin(recorded);
        take(waiting.machine);
        expect(waiting.machine.answer(0, 0)).toBe(IOERR);
        waiting.goOn();
        await waiting.bed.stop(waiting.server);
      },
      30_000,
    );
  }
}

/** Ways to interrupt a ring, which goes on at once. */
const interrupted: Record<string, (machine: Machine) => void> = {
  ADD_MEM_REG: ({ connection, memory }) =>
    connection.askAck(Request.ADD_MEM_REG, addMemory, [memory.fd]),
  SET_VRING_ADDR: (machine) =>
    machine.connection.askAck(Request.SET_VRING_ADDR, machine.addresses(0)),
  SET_VRING_KICK: ({ connection, events }) =>
    connection.askAck(Request.SET_VRING_KICK, vringFd(0), [events[0].kickFd]),
  SET_VRING_ERR: ({ connection, errFds }) =>
    connection.askAck(Request.SET_VRING_ERR, vringFd(0), [errFds[0]]),
};

for (const [name, interrupt] of Object.entries(interrupted)) {
  testWith(
    `an interrupted ring leaves what waits to its record, and begins it again: ${name}`,
    [],
    async () => {
      await using waiting = await Waiting.begin(true);
      interrupt(waiting.machine);
      expect(waiting.status).toBe(NO_STATUS);
      waiting.away.end();
      expect(waiting.machine.answer(0, 0)).toBe(OK);
      await waiting.bed.stop(waiting.server);
    },
    30_000,
  );

  testWith(
    `without a record it fails what waits, and goes on: ${name}`,
    [],
    async () => {
      await using waiting = await Waiting.begin(false);
      interrupt(waiting.machine);
      expect(waiting.machine.answer(0, 0)).toBe(IOERR);
      waiting.away.end();
      expect(waiting.machine.read(0, SECTOR_OF(5))).toBe(OK);
      await waiting.bed.stop(waiting.server);
    },
    30_000,
  );
}

testWith(
  'a frontend that goes while its ring is being taken away leaves what waits to its record',
  [],
  async () => {
    await using waiting = await Waiting.begin(true);
    const { machine, server } = waiting;
    machine.connection.send(Request.GET_VRING_BASE, vringState(0, 0));
    machine.connection.close();
    // Served before what waits would have been failed.
    const other = connect(server);
    expect(waiting.status).toBe(NO_STATUS);
    other.close();
    machine.connect(server);
    expect(waiting.status).toBe(NO_STATUS);
    waiting.away.end();
    expect(machine.answer(0, 0)).toBe(OK);
    await waiting.bed.stop(server);
  },
  30_000,
);
