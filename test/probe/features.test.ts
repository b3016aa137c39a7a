import { expect, test } from 'bun:test';
import { F } from '../../src/frontend/vhost/block_config.ts';
import { protocolFeatureNames, virtioFeatureNames } from '../../src/probe/features.ts';

test('the features that the server knows have names', () => {
  const bits = Object.values(F).reduce((all, bit) => all | (1n << BigInt(bit)), 0n);
  expect(virtioFeatureNames(bits).filter((name) => name.startsWith('bit_'))).toEqual([]);
});

test('bits without a name are named by their number', () => {
  expect(virtioFeatureNames(0x8000_0000_0000_2200n)).toEqual(['flush', 'discard', 'bit_63']);
  expect(protocolFeatureNames(0x8209n)).toEqual([
    'mq',
    'reply_ack',
    'config',
    'configure_mem_slots',
  ]);
  expect(virtioFeatureNames(0n)).toEqual([]);
});
