/** Lines as the reference system's frontend printed them, for scripts that read those. */
import type { DeviceDescription } from './negotiation.ts';

/** In the order in which they are told; 27 and 33 have two names. */
const NAMES: readonly (readonly [bit: number, name: string])[] = [
  [33, 'VIRTIO_F_ACCESS_PLATFORM'],
  [41, 'VIRTIO_F_ADMIN_VQ'],
  [27, 'VIRTIO_F_ANY_LAYOUT'],
  [35, 'VIRTIO_F_IN_ORDER'],
  [33, 'VIRTIO_F_IOMMU_PLATFORM'],
  [38, 'VIRTIO_F_NOTIFICATION_DATA'],
  [24, 'VIRTIO_F_NOTIFY_ON_EMPTY'],
  [39, 'VIRTIO_F_NOTIF_CONFIG_DATA'],
  [36, 'VIRTIO_F_ORDER_PLATFORM'],
  [34, 'VIRTIO_F_RING_PACKED'],
  [40, 'VIRTIO_F_RING_RESET'],
  [37, 'VIRTIO_F_SR_IOV'],
  [32, 'VIRTIO_F_VERSION_1'],
  [0, 'VIRTIO_BLK_F_BARRIER'],
  [1, 'VIRTIO_BLK_F_SIZE_MAX'],
  [2, 'VIRTIO_BLK_F_SEG_MAX'],
  [4, 'VIRTIO_BLK_F_GEOMETRY'],
  [5, 'VIRTIO_BLK_F_RO'],
  [6, 'VIRTIO_BLK_F_BLK_SIZE'],
  [7, 'VIRTIO_BLK_F_SCSI'],
  [9, 'VIRTIO_BLK_F_FLUSH'],
  [10, 'VIRTIO_BLK_F_TOPOLOGY'],
  [11, 'VIRTIO_BLK_F_CONFIG_WCE'],
  [12, 'VIRTIO_BLK_F_MQ'],
  [13, 'VIRTIO_BLK_F_DISCARD'],
  [14, 'VIRTIO_BLK_F_WRITE_ZEROES'],
  [16, 'VIRTIO_BLK_F_SECURE_ERASE'],
  [29, 'VIRTIO_RING_F_EVENT_IDX'],
  [28, 'VIRTIO_RING_F_INDIRECT_DESC'],
  [30, 'VHOST_USER_F_PROTOCOL_FEATURES'],
];

/** `Features (0x200): VIRTIO_BLK_F_FLUSH`; bits without a name come last, as one number. */
export function featureLine(features: bigint): string {
  const found = NAMES.filter(([bit]) => (features >> BigInt(bit)) & 1n);
  const rest = found.reduce((left, [bit]) => left & ~(1n << BigInt(bit)), features);
  const names = found.map(([, name]) => name);
  if (rest !== 0n) names.push(`0x${rest.toString(16)}`);
  return `Features (0x${features.toString(16)}): ${names.join(' | ')}\n`;
}

/** What follows the fields of the configuration space. */
export function deviceLines({ capacityBytes, queues }: DeviceDescription): string {
  const mib = Math.floor(capacityBytes / (1024 * 1024));
  return `Device capacity: ${mib} MiB\nNumber of queues: ${queues}\n`;
}
