/** Commands to the driver as they leave the process, and what is said where they are refused. */
import { afterEach, beforeAll, beforeEach, expect, type Mock, spyOn, test } from 'bun:test';
import { existsSync } from 'node:fs';
import {
  EACCES,
  EBUSY,
  EINVAL,
  ENODEV,
  ENOENT,
  ENOMEM,
  ENXIO,
  EOPNOTSUPP,
  EPERM,
  ETIME,
} from '../../ffi/errno.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import { windowOver } from '../../ffi/memory.ts';
import { UserError } from '../../src/errors.ts';
import { isKnownBad, UblkControl, UblkRefused } from '../../src/frontend/ublk/control.ts';
import {
  Control,
  type ControlName,
  type DeviceInfo,
  featureBits,
  INFO_BYTES,
  PARAMS_BYTES,
  writeDeviceInfo,
} from '../../src/frontend/ublk/protocol.ts';

/** A command as the driver gets it: struct ublksrv_ctrl_cmd. */
interface Sent {
  command: ControlName;
  device: number;
  queue: number;
  length: number;
  data: bigint;
  /** The device's path that stands before the payload, and the payload. */
  path: string;
  payload: Buffer;
  patienceMs: number;
}

const NAMES = new Map<number, ControlName>();
for (const [name, { op, legacy }] of Object.entries(Control)) {
  NAMES.set(op, name as ControlName);
  NAMES.set(legacy, name as ControlName);
}

/** The driver's answers by command: a result, or what is done to the payload before the result is 0. */
let answers: Partial<Record<ControlName, number | ((payload: DataView) => void)>>;
let sent: Sent[];
let ops: number[];
let spies: Mock<(...args: never[]) => unknown>[] = [];
/** What opening the control device gives. */
let opens = 0;

beforeAll(() => {
  openLibrary();
});

beforeEach(() => {
  answers = { GET_FEATURES: (payload) => payload.setBigUint64(0, 0x7fn, true) };
  sent = [];
  ops = [];
  opens = 0;
  spies = [
    spyOn(shim, 'ubiblk_ublk_open').mockImplementation((() => opens) as never),
    spyOn(shim, 'ubiblk_ublk_close').mockImplementation((() => 0) as never),
    spyOn(shim, 'ubiblk_ublk_command').mockImplementation(driver as never),
  ];
});

afterEach(() => {
  for (const spy of spies) spy.mockRestore();
});

function driver(_: number, op: number, bytes: Uint8Array, patienceMs: number): number {
  const words = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const command = NAMES.get(op) as ControlName;
  const pathBytes = words.getUint16(24, true);
  const length = words.getUint16(6, true);
  const address = Number(words.getBigUint64(8, true));
  expect(bytes.length).toBe(32);
  expect(words.getUint16(26, true) + words.getUint32(28, true)).toBe(0);
  expect(address === 0).toBe(length === 0);
  const memory = length === 0 ? Buffer.alloc(0) : Buffer.from(windowOver(address, length));
  const payload = memory.subarray(pathBytes);
  ops.push(op);
  sent.push({
    command,
    device: words.getInt32(0, true),
    queue: words.getUint16(4, true),
    length,
    data: words.getBigUint64(16, true),
    path: memory.toString('latin1', 0, pathBytes),
    payload: Buffer.from(payload),
    patienceMs,
  });
  const answer = answers[command] ?? 0;
  if (typeof answer === 'number') return answer;
  answer(new DataView(payload.buffer, payload.byteOffset, payload.length));
  return 0;
}

const device: DeviceInfo = {
  id: 3,
  queues: 2,
  depth: 64,
  state: 'live',
  maxIoBytes: 1 << 20,
  pid: 12,
  flags: featureBits('USER_RECOVERY'),
  userFlags: 5n,
  ownerUid: 0,
  ownerGid: 0,
};
const ofUser = { ...device, flags: featureBits('UNPRIVILEGED_DEV') };

function thrown(action: () => unknown): Error {
  try {
    action();
  } catch (error) {
    return error as Error;
  }
  throw new Error('nothing was thrown');
}

test.each(['6.17.0-1007-aws', '6.17.0-12-aws', '6.17.0-1015-azure', '6.18.4-arch1-1', '6.18.5'])(
  '%s is known to crash in its driver',
  (kernel) => {
    expect(isKnownBad(kernel)).toBe(true);
  },
);

test.each([
  '6.17.0-1007-generic',
  '6.17.0',
  '6.18.0-1007-aws',
  '6.8.0-1007-aws',
  '6.18.3',
  '6.18.6-arch1-1',
  '6.18.40',
  '16.17.0-1-aws',
  '6.17.0-1007-aws-fips',
])('%s is not', (kernel) => {
  expect(isKnownBad(kernel)).toBe(false);
});

test.each([-ENOENT, -ENXIO, -ENODEV])(
  'without a driver the sentence says how to get one (%i)',
  (result) => {
    opens = result;
    const error = thrown(() => new UblkControl());
    expect(error).toBeInstanceOf(UserError);
    expect(error.message).toMatch(
      /^'\/dev\/ublk-control' is missing: (load the kernel's ublk driver with 'modprobe ublk_drv'|this kernel \(.*\) has no ublk driver; boot Linux 6\.0 or later, built with CONFIG_BLK_DEV_UBLK)$/,
    );
  },
);

test('without permission it names the way of users', () => {
  for (const result of [-EACCES, -EPERM]) {
    opens = result;
    const { message } = thrown(() => new UblkControl());
    expect(message).toMatch(
      /^'\/dev\/ublk-control' can't be opened \(E(ACCES|PERM)\): run as root, /,
    );
    const page = message.match(/docs\/\S+/)?.[0];
    expect(existsSync(`${import.meta.dir}/../../${page}`)).toBe(true);
  }
});

test('where io_uring is what is missing, that is said', () => {
  opens = -ENOMEM;
  expect(thrown(() => new UblkControl()).message).toContain(
    "'/dev/ublk-control' can't be used: ENOMEM; ublk needs io_uring (sysctl kernel.io_uring_disabled)",
  );
});

test('the driver is asked what it can do, and one that does not know the question is old', () => {
  const now = new UblkControl();
  expect([now.features, now.legacy]).toEqual([0x7fn, false]);
  expect(sent[0]).toMatchObject({ command: 'GET_FEATURES', device: -1, length: 8, path: '' });
  expect(ops).toEqual([0x80207513]);
  for (const result of [-EOPNOTSUPP, -EINVAL]) {
    answers.GET_FEATURES = result;
    const before = new UblkControl();
    expect([before.features, before.legacy]).toEqual([null, true]);
  }
  answers.GET_FEATURES = -EPERM;
  expect(() => new UblkControl()).toThrow(UblkRefused);
});

test('an old driver is spoken to by the old numbers, and never asked', () => {
  const control = new UblkControl({ legacy: true });
  control.start(3);
  expect(ops).toEqual([0x06]);
});

test('a command to the driver, field by field', () => {
  const control = new UblkControl();
  sent = [];
  control.start(3);
  control.endRecovery(3);
  control.startRecovery(3);
  control.quiesce(3, 5000);
  control.queueAffinity(3, 1);
  const empty = { device: 3, queue: 0xffff, path: '' };
  const pid = BigInt(process.pid);
  expect(sent.map(({ payload: _, ...rest }) => rest)).toEqual([
    { ...empty, command: 'START_DEV', length: 0, data: pid, patienceMs: 10_000 },
    { ...empty, command: 'END_USER_RECOVERY', length: 0, data: pid, patienceMs: 10_000 },
    { ...empty, command: 'START_USER_RECOVERY', length: 0, data: 0n, patienceMs: 30_000 },
    { ...empty, command: 'QUIESCE_DEV', length: 0, data: 5000n, patienceMs: 10_000 },
    { ...empty, command: 'GET_QUEUE_AFFINITY', length: 1024, data: 1n, patienceMs: 30_000 },
  ]);
});

test('what the kernel makes of a new device is what counts', () => {
  const control = new UblkControl();
  answers.ADD_DEV = (payload) => writeDeviceInfo(payload, { ...device, depth: 128 });
  expect(control.add({ ...device, id: -1 })).toEqual({ ...device, depth: 128 });
  const { payload, ...command } = sent[1];
  expect(command).toMatchObject({ command: 'ADD_DEV', device: -1, length: INFO_BYTES, path: '' });
  expect([payload.readInt32LE(12), payload.readUInt16LE(0)]).toEqual([-1, 2]);
});

test("the path of a user's device stands before the payload of every command to it", () => {
  const control = new UblkControl();
  answers.ADD_DEV = (payload) => writeDeviceInfo(payload, ofUser);
  answers.GET_DEV_INFO2 = (payload) => writeDeviceInfo(payload, ofUser);
  control.add(ofUser);
  sent = [];
  control.setParams(3, {
    readOnly: true,
    volatileCache: false,
    fua: false,
    logicalBlock: 512,
    physicalBlock: 512,
    minIo: 512,
    optimalIo: 512,
    maxIoBytes: 4096,
    sectors: 8,
    maxDiscardSectors: 0,
    maxWriteZeroesSectors: 0,
    discardGranularity: 512,
    dmaAlignment: 512,
  });
  control.start(3);
  control.stop(3);
  control.delete(3);
  const path = '/dev/ublkc3\0';
  expect(sent.map(({ command, length, path }) => [command, length, path])).toEqual([
    ['SET_PARAMS', path.length + PARAMS_BYTES, path],
    ['START_DEV', path.length, path],
    ['STOP_DEV', path.length, path],
    ['DEL_DEV', path.length, path],
  ]);
  expect(sent[0].payload.readUInt32LE(0)).toBe(PARAMS_BYTES);
  // Another process learns whose it is, and does the same.
  const other = new UblkControl();
  sent = [];
  expect(other.info(3)).toEqual(ofUser);
  other.params(3);
  other.queueAffinity(3, 0);
  expect(sent.map(({ command, path }) => [command, path])).toEqual([
    ['GET_DEV_INFO2', path],
    ['GET_PARAMS', path],
    ['GET_QUEUE_AFFINITY', path],
  ]);
  expect(sent[1].payload.readUInt32LE(0)).toBe(PARAMS_BYTES);
});

test('a device is asked for by the older command where the newer is not known', () => {
  const control = new UblkControl();
  answers.GET_DEV_INFO2 = -EOPNOTSUPP;
  answers.GET_DEV_INFO = (payload) => writeDeviceInfo(payload, device);
  sent = [];
  expect(control.info(3)).toEqual(device);
  expect(sent.map(({ command, path }) => [command, path])).toEqual([
    ['GET_DEV_INFO2', '/dev/ublkc3\0'],
    ['GET_DEV_INFO', ''],
  ]);
});

test('a device that is gone is none; one of somebody else is an error, unless all are looked at', () => {
  const control = new UblkControl();
  answers.GET_DEV_INFO2 = -ENODEV;
  expect(control.info(3)).toBe(null);
  answers.GET_DEV_INFO2 = -EINVAL;
  answers.GET_DEV_INFO = -ENODEV;
  expect(control.info(3)).toBe(null);
  // It has lost its file already, and may be asked for as before.
  answers.GET_DEV_INFO2 = -ENOENT;
  expect(control.info(3)).toBe(null);
  answers.GET_DEV_INFO = (payload) => writeDeviceInfo(payload, { ...device, state: 'dead' });
  expect(control.info(3)?.state).toBe('dead');
  answers.GET_DEV_INFO = -EINVAL;
  expect(control.info(3)).toBe(null);
  for (const result of [-EACCES, -EPERM]) {
    answers.GET_DEV_INFO2 = result;
    expect(thrown(() => control.info(3))).toBeInstanceOf(UblkRefused);
    expect(control.infoIfAllowed(3)).toBe(null);
  }
});

test('a held device is removed as soon as it is let go, where the driver can', () => {
  const control = new UblkControl();
  expect(control.deleteHeld(3)).toBe(true);
  for (const result of [-EOPNOTSUPP, -EINVAL]) {
    answers.DEL_DEV_ASYNC = result;
    expect(control.deleteHeld(3)).toBe(false);
  }
  answers.DEL_DEV_ASYNC = -ENODEV;
  expect(control.deleteHeld(3)).toBe(true);
  answers.DEL_DEV_ASYNC = -EBUSY;
  expect(thrown(() => control.deleteHeld(3)).message).toBe(
    'the ublk driver refused DEL_DEV_ASYNC with EBUSY',
  );
});

test('a command that waits for nobody has a deadline', () => {
  const control = new UblkControl();
  answers.ADD_DEV = -ETIME;
  const { message } = thrown(() => control.add(device));
  expect(message).toMatch(/^the ublk driver has not answered ADD_DEV in 30 s; /);
});

test('one that waits for I/O is told of, and waited for', () => {
  const told: string[] = [];
  const control = new UblkControl({ onSlow: (command) => told.push(command) });
  let result = 0;
  const waited = spyOn(shim, 'ubiblk_ublk_await').mockImplementation((() => result) as never);
  spies.push(waited as never);
  answers.STOP_DEV = -ETIME;
  control.stop(3);
  result = -ENODEV;
  expect(() => control.stop(3)).toThrow('refused STOP_DEV with ENODEV');
  expect(told).toEqual(['STOP_DEV', 'STOP_DEV']);
  expect(waited.mock.calls.map(([, timeoutMs]) => timeoutMs)).toEqual([-1, -1]);
});
