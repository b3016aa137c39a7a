/**
 * Numbers and structures of the ublk driver, byte by byte. What must come out was printed by a C program
 * that fills the structures of the kernel's own header (linux/ublk_cmd.h of Linux 7.2).
 */
import { expect, test } from 'bun:test';
import {
  bufferOffset,
  Control,
  type DeviceInfo,
  type DeviceParams,
  F,
  type Feature,
  featureBits,
  featureNames,
  hasFeature,
  INFO_BYTES,
  Io,
  PARAMS_BYTES,
  readDeviceInfo,
  readDeviceParams,
  writeDeviceInfo,
  writeDeviceParams,
} from '../../src/frontend/ublk/protocol.ts';

test('control commands have the numbers of UBLK_U_CMD_*, and those of before Linux 6.4', () => {
  const numbers = Object.entries(Control).map(([name, { op }]) => [name, op]);
  expect(Object.fromEntries(numbers)).toEqual({
    GET_QUEUE_AFFINITY: 0x80207501,
    GET_DEV_INFO: 0x80207502,
    ADD_DEV: 0xc0207504,
    DEL_DEV: 0xc0207505,
    START_DEV: 0xc0207506,
    STOP_DEV: 0xc0207507,
    SET_PARAMS: 0xc0207508,
    GET_PARAMS: 0x80207509,
    START_USER_RECOVERY: 0xc0207510,
    END_USER_RECOVERY: 0xc0207511,
    GET_DEV_INFO2: 0x80207512,
    GET_FEATURES: 0x80207513,
    DEL_DEV_ASYNC: 0x80207514,
    QUIESCE_DEV: 0xc0207516,
  });
  expect(Object.values(Control).map(({ legacy }) => legacy)).toEqual([
    0x01, 0x02, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x10, 0x11, 0x12, 0x13, 0x14, 0x16,
  ]);
});

test('I/O commands have the numbers of UBLK_U_IO_*', () => {
  expect(Io).toEqual({
    FETCH_REQ: { op: 0xc0107520, legacy: 0x20 },
    COMMIT_AND_FETCH_REQ: { op: 0xc0107521, legacy: 0x21 },
    NEED_GET_DATA: { op: 0xc0107522, legacy: 0x22 },
  });
});

test('features stand in the order of the kernel, and are named in lower case', () => {
  const inOrder: Feature[] = [
    'SUPPORT_ZERO_COPY',
    'URING_CMD_COMP_IN_TASK',
    'NEED_GET_DATA',
    'USER_RECOVERY',
    'USER_RECOVERY_REISSUE',
    'UNPRIVILEGED_DEV',
    'CMD_IOCTL_ENCODE',
    'USER_COPY',
    'ZONED',
    'USER_RECOVERY_FAIL_IO',
    'UPDATE_SIZE',
    'AUTO_BUF_REG',
    'QUIESCE',
    'PER_IO_DAEMON',
    'BUF_REG_OFF_DAEMON',
    'BATCH_IO',
    'INTEGRITY',
    'SAFE_STOP_DEV',
    'NO_AUTO_PART_SCAN',
    'SHMEM_ZC',
  ];
  expect(inOrder.map((name): number => F[name])).toEqual(inOrder.map((_, bit) => bit));
  expect(Object.keys(F).length).toBe(inOrder.length);
  const bits = featureBits('USER_RECOVERY', 'QUIESCE', 'SHMEM_ZC');
  expect(bits).toBe(0x81008n);
  expect(inOrder.filter((name) => hasFeature(bits, name))).toEqual([
    'USER_RECOVERY',
    'QUIESCE',
    'SHMEM_ZC',
  ]);
  expect(featureNames(bits | (1n << 20n) | (1n << 63n))).toEqual([
    'user_recovery',
    'quiesce',
    'shmem_zc',
    'bit_20',
    'bit_63',
  ]);
});

/** What `write` makes of bytes that were all set, as hexadecimal digits. */
function written(length: number, write: (view: DataView) => void): string {
  const bytes = Buffer.alloc(length, 0xff);
  write(new DataView(bytes.buffer, bytes.byteOffset, length));
  return bytes.toString('hex');
}

function view(hex: string): DataView {
  const bytes = Buffer.from(hex, 'hex');
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

const infos: [string, string, DeviceInfo][] = [
  [
    'where every field has a value of its own',
    '020104030200000000000605100908071413121100000000222120191817161530292827262524233433323138373635' +
      '00000000000000000000000000000000',
    {
      queues: 0x0102,
      depth: 0x0304,
      state: 'quiesced',
      maxIoBytes: 0x05060000,
      id: 0x07080910,
      pid: 0x11121314,
      flags: 0x1516171819202122n,
      userFlags: 0x2324252627282930n,
      ownerUid: 0x31323334,
      ownerGid: 0x35363738,
    },
  ],
  [
    'of a new device, whose number and process are -1',
    '010080000000000000001000ffffffffffffffff0000000018000000000000000000000000000000' +
      '000000000000000000000000000000000000000000000000',
    {
      queues: 1,
      depth: 128,
      state: 'dead',
      maxIoBytes: 1 << 20,
      id: -1,
      pid: -1,
      flags: 0x18n,
      userFlags: 0n,
      ownerUid: 0,
      ownerGid: 0,
    },
  ],
];

for (const [name, hex, info] of infos) {
  test(`struct ublksrv_ctrl_dev_info ${name}`, () => {
    expect(written(INFO_BYTES, (into) => writeDeviceInfo(into, info))).toBe(hex);
    expect(readDeviceInfo(view(hex))).toEqual(info);
  });
}

test('a state that a later kernel may have is dead: it is served by nobody', () => {
  const later = view(infos[0][1]);
  later.setUint16(4, 4, true);
  expect(readDeviceInfo(later).state).toBe('dead');
});

/** struct ublk_params as far as its member `seg`. */
const params: [string, string, DeviceParams][] = [
  [
    'with a cache, discard, and memory aligned to pages',
    '78000000130000000c000000090c140d0008000000000000605040302010000000000000000000000000000000100000' +
      '000020000020000001000000' +
      '00000000000000000000000000000000' +
      '0000000000000000000000000000000000000000000000000000000000000000' +
      'ff0f00000000000000000000',
    {
      readOnly: false,
      volatileCache: true,
      fua: true,
      logicalBlock: 512,
      physicalBlock: 4096,
      optimalIo: 1 << 20,
      minIo: 8192,
      maxIoBytes: 1 << 20,
      sectors: 0x102030405060,
      maxDiscardSectors: 1 << 21,
      maxWriteZeroesSectors: 1 << 13,
      discardGranularity: 4096,
      dmaAlignment: 4096,
    },
  ],
  [
    'of a read-only disk of 4 KiB blocks',
    '7800000003000000010000000c0c0c0c0800000000000000000002000000000000000000000000000000000000100000' +
      '000000000000000001000000' +
      '00000000000000000000000000000000' +
      '0000000000000000000000000000000000000000000000000000000000000000' +
      '000000000000000000000000',
    {
      readOnly: true,
      volatileCache: false,
      fua: false,
      logicalBlock: 4096,
      physicalBlock: 4096,
      optimalIo: 4096,
      minIo: 4096,
      maxIoBytes: 4096,
      sectors: 131072,
      maxDiscardSectors: 0,
      maxWriteZeroesSectors: 0,
      discardGranularity: 4096,
      dmaAlignment: 4,
    },
  ],
];

for (const [name, hex, fields] of params) {
  test(`struct ublk_params ${name}`, () => {
    expect(written(PARAMS_BYTES, (into) => writeDeviceParams(into, fields))).toBe(hex);
    expect(readDeviceParams(view(hex))).toEqual(fields);
  });
}

test('of the parameters of another server only what their types name is read', () => {
  // A zoned, rotational device without discard: what isn't named is all ones.
  const other =
    '980000006d000000020000000909090900010000ffffffff0008000000000000ffffffffffffffff' +
    'ffffffffffffffffffffffffffffffffffffffff0301000001000000030100000200000001000000' +
    '02000000030000000000000000000000000000000000000000000000ffffffff0000000000000000' +
    'ffffffffffffffff001000000100000000000000000000000000000000000000';
  expect(readDeviceParams(view(other))).toEqual({
    readOnly: false,
    volatileCache: false,
    fua: false,
    logicalBlock: 512,
    physicalBlock: 512,
    optimalIo: 512,
    minIo: 512,
    maxIoBytes: 128 << 10,
    sectors: 2048,
    maxDiscardSectors: 0,
    maxWriteZeroesSectors: 0,
    discardGranularity: 0,
    dmaAlignment: 4,
  });
});

test('the memory of each request has its place in the file of the character device', () => {
  expect(bufferOffset(0, 0)).toBe(0x8000_0000);
  expect(bufferOffset(3, 5)).toBe(0x6008a000000);
  expect(bufferOffset(4095, 4095)).toBe(0x1ffe207e000000);
});
