import { expect, test } from 'bun:test';
import { deviceLines, featureLine } from '../../src/probe/reference_lines.ts';

test.each([
  [0n, 'Features (0x0): \n'],
  [
    0x8000_0000_0000_2200n,
    'Features (0x8000000000002200): VIRTIO_BLK_F_FLUSH | VIRTIO_BLK_F_DISCARD | 0x8000000000000000\n',
  ],
  [
    0x1_7000_0000n,
    'Features (0x170000000): VIRTIO_F_VERSION_1 | VIRTIO_RING_F_EVENT_IDX | ' +
      'VIRTIO_RING_F_INDIRECT_DESC | VHOST_USER_F_PROTOCOL_FEATURES\n',
  ],
  [0x2_0000_0000n, 'Features (0x200000000): VIRTIO_F_ACCESS_PLATFORM | VIRTIO_F_IOMMU_PLATFORM\n'],
])('features 0x%x', (features, line) => expect(featureLine(features)).toBe(line));

test('capacities are told in whole MiB', () => {
  const device = { capacityBytes: 3 * 1024 * 1024 + 512, queues: 4 };
  expect(deviceLines(device as Parameters<typeof deviceLines>[0])).toBe(
    'Device capacity: 3 MiB\nNumber of queues: 4\n',
  );
});
