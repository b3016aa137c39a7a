/** Names of feature bits, for people to read. */

/** virtio 1.2, 5.2.3 and 6; bit 30 is vhost-user's own. */
const VIRTIO_NAMES: Record<number, string> = {
  0: 'barrier',
  1: 'size_max',
  2: 'seg_max',
  4: 'geometry',
  5: 'ro',
  6: 'blk_size',
  7: 'scsi',
  9: 'flush',
  10: 'topology',
  11: 'config_wce',
  12: 'mq',
  13: 'discard',
  14: 'write_zeroes',
  15: 'lifetime',
  16: 'secure_erase',
  17: 'zoned',
  24: 'notify_on_empty',
  26: 'log_all',
  27: 'any_layout',
  28: 'indirect_desc',
  29: 'event_idx',
  30: 'protocol_features',
  32: 'version_1',
  33: 'access_platform',
  34: 'ring_packed',
  35: 'in_order',
  36: 'order_platform',
  37: 'sr_iov',
  38: 'notification_data',
  39: 'notif_config_data',
  40: 'ring_reset',
  41: 'admin_vq',
};

/** vhost-user, "Protocol features". */
const PROTOCOL_NAMES: Record<number, string> = {
  0: 'mq',
  1: 'log_shmfd',
  2: 'rarp',
  3: 'reply_ack',
  4: 'mtu',
  5: 'backend_req',
  6: 'cross_endian',
  7: 'crypto_session',
  8: 'pagefault',
  9: 'config',
  10: 'backend_send_fd',
  11: 'host_notifier',
  12: 'inflight_shmfd',
  13: 'reset_device',
  14: 'inband_notifications',
  15: 'configure_mem_slots',
  16: 'status',
  17: 'xen_mmap',
  18: 'shared_object',
  19: 'device_state',
};

/** Bits without a name are called `bit_N`. */
function namesOf(bits: bigint, names: Record<number, string>): string[] {
  return Array.from({ length: 64 }, (_, bit) => bit)
    .filter((bit) => (bits >> BigInt(bit)) & 1n)
    .map((bit) => names[bit] ?? `bit_${bit}`);
}

export function virtioFeatureNames(bits: bigint): string[] {
  return namesOf(bits, VIRTIO_NAMES);
}

export function protocolFeatureNames(bits: bigint): string[] {
  return namesOf(bits, PROTOCOL_NAMES);
}
