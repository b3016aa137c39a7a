/**
 * Opens the shim, libubiblk.so. It is embedded in the executable; its bytes go into a memory file and
 * are opened from there, so that nothing is left on disk and a /tmp mounted noexec is no obstacle.
 *
 * The main thread calls `openLibrary`; each Worker calls `attachLibrary` with the descriptor it was
 * told. `shim` is then the table of functions, the only one in the project.
 */
import { dlopen, FFIType } from 'bun:ffi';
import embedded from '../build/libubiblk.so' with { type: 'file' };
import { UserError } from '../src/errors.ts';

const SYMBOLS = {
  ubiblk_ring_create: { args: ['u32', 'u32', 'u32', 'ptr'], returns: 'i32' },
  ubiblk_ring_destroy: { args: ['u64'], returns: 'i32' },
  ubiblk_ring_enter: { args: ['u64', 'u32', 'u32', 'i32'], returns: 'i32' },
  ubiblk_ring_gather: { args: ['u64', 'u32', 'u32', 'u32'], returns: 'i32' },
  ubiblk_ring_register_files: { args: ['u64', 'ptr', 'u32'], returns: 'i32' },
  ubiblk_ring_update_files: { args: ['u64', 'u32', 'ptr', 'u32'], returns: 'i32' },
  ubiblk_ring_register_buffers: { args: ['u64', 'ptr', 'u32'], returns: 'i32' },
  ubiblk_ring_register_places: { args: ['u64', 'u32'], returns: 'i32' },
  ubiblk_ring_unregister_buffers: { args: ['u64'], returns: 'i32' },
  ubiblk_ring_spin: { args: ['u64', 'u64', 'u32', 'u32'], returns: 'i32' },
  ubiblk_spin_avail: { args: ['u64', 'u32', 'u32'], returns: 'i32' },
  ubiblk_liburing_version: { args: ['ptr', 'u32'], returns: 'i32' },
  ubiblk_cipher_library: { args: ['ptr', 'u32'], returns: 'i32' },
  ubiblk_secret_alloc: { args: ['u32'], returns: FFIType.i64_fast },
  ubiblk_secret_free: { args: ['u64'], returns: 'i32' },
  ubiblk_secret_locked: { args: [], returns: 'i32' },
  ubiblk_xts_new: { args: ['u64', 'u64'], returns: FFIType.i64_fast },
  ubiblk_xts_free: { args: ['u64'], returns: 'i32' },
  ubiblk_xts_encrypt: { args: ['u64', 'u64', 'u64', 'u64', 'u64'], returns: 'i32' },
  ubiblk_xts_decrypt: { args: ['u64', 'u64', 'u64', 'u64', 'u64'], returns: 'i32' },
  ubiblk_xts_encrypt_parts: {
    args: ['u64', 'u64', 'u64', 'u64', 'u32', 'u64', 'u64'],
    returns: 'i32',
  },
  ubiblk_xts_decrypt_parts: {
    args: ['u64', 'u64', 'u64', 'u64', 'u64', 'u32', 'u64'],
    returns: 'i32',
  },
  ubiblk_gcm_wrap: {
    args: ['u64', 'ptr', 'ptr', 'u32', 'u64', 'u32', 'ptr'],
    returns: 'i32',
  },
  ubiblk_gcm_unwrap: {
    args: ['u64', 'ptr', 'ptr', 'u32', 'ptr', 'u32', 'u64'],
    returns: 'i32',
  },
  ubiblk_base64_decode: { args: ['u64', 'u32', 'u64'], returns: 'i32' },
  ubiblk_file_facts: { args: ['i32', 'ptr'], returns: 'i32' },
  ubiblk_file_probe_zeroing: { args: ['i32', 'ptr'], returns: 'i32' },
  ubiblk_file_lock: { args: ['i32', 'u64', 'u64', 'i32'], returns: 'i32' },
  ubiblk_preadv: { args: ['i32', 'u64', 'i32', 'u64'], returns: FFIType.i64_fast },
  ubiblk_pwritev: { args: ['i32', 'u64', 'i32', 'u64', 'i32'], returns: FFIType.i64_fast },
  ubiblk_pread: { args: ['i32', 'u64', 'u64', 'u64'], returns: FFIType.i64_fast },
  ubiblk_pread_cached: { args: ['i32', 'u64', 'u64', 'u64'], returns: FFIType.i64_fast },
  ubiblk_pwrite: { args: ['i32', 'u64', 'u64', 'u64'], returns: FFIType.i64_fast },
  ubiblk_fallocate: { args: ['i32', 'i32', 'u64', 'u64'], returns: 'i32' },
  ubiblk_file_birth: { args: ['i32'], returns: FFIType.i64 },
  ubiblk_file_expect: { args: ['i32', 'u64', 'u64'], returns: 'i32' },
  ubiblk_fdatasync: { args: ['i32'], returns: 'i32' },
  ubiblk_file_link: { args: ['i32', 'cstring'], returns: 'i32' },
  ubiblk_object_bound: { args: ['u32', 'u64'], returns: FFIType.u64_fast },
  ubiblk_hmac_sha256: { args: ['u64', 'u32', 'ptr', 'u64', 'ptr'], returns: 'i32' },
  ubiblk_sha256: { args: ['ptr', 'u64', 'ptr'], returns: 'i32' },
  ubiblk_lanes_start: { args: [], returns: 'i32' },
  ubiblk_lanes_reap: { args: ['ptr', 'u32'], returns: 'u32' },
  ubiblk_lane_open: { args: ['cstring', 'u32', 'ptr'], returns: 'i32' },
  ubiblk_lane_submit: {
    args: ['u64', 'u32', 'u32', 'i32', 'u64', 'u64', 'u64', 'i32'],
    returns: 'i32',
  },
  ubiblk_lane_close: { args: ['u64'], returns: 'void' },
  ubiblk_dup: { args: ['i32'], returns: 'i32' },
  ubiblk_memory_map: { args: ['u64'], returns: FFIType.i64_fast },
  ubiblk_memory_unmap: { args: ['u64', 'u64'], returns: 'i32' },
  ubiblk_memory_map_shared: { args: ['i32', 'u64', 'u64', 'ptr'], returns: FFIType.i64_fast },
  ubiblk_memory_unmap_shared: { args: ['u64', 'u64'], returns: 'i32' },
  ubiblk_memory_lost_counter: { args: [], returns: FFIType.u64_fast },
  ubiblk_memory_memfd: { args: ['cstring', 'u64'], returns: 'i32' },
  ubiblk_memory_memfd_huge: { args: ['cstring', 'u64'], returns: 'i32' },
  ubiblk_memory_copy: { args: ['u64', 'u64', 'u64'], returns: 'i32' },
  ubiblk_memory_fill: { args: ['u64', 'i32', 'u64'], returns: 'i32' },
  ubiblk_memory_gather: { args: ['u64', 'u64', 'u32', 'u64', 'u64'], returns: 'i32' },
  ubiblk_memory_scatter: { args: ['u64', 'u32', 'u64', 'u64', 'u64'], returns: 'i32' },
  ubiblk_socket_listen: { args: ['cstring', 'u32', 'ptr'], returns: 'i32' },
  ubiblk_socket_remove: { args: ['cstring', 'ptr'], returns: 'i32' },
  ubiblk_socket_connect: { args: ['cstring'], returns: 'i32' },
  ubiblk_socket_accept: { args: ['i32'], returns: 'i32' },
  ubiblk_socket_gone: { args: ['i32'], returns: 'i32' },
  ubiblk_socket_receive: { args: ['i32', 'ptr', 'u32', 'ptr', 'ptr'], returns: 'i32' },
  ubiblk_socket_send: { args: ['i32', 'ptr', 'u32', 'ptr', 'u32'], returns: 'i32' },
  ubiblk_set_blocking: { args: ['i32', 'i32'], returns: 'i32' },
  ubiblk_socket_pair: { args: ['ptr'], returns: 'i32' },
  ubiblk_tcp_listen: { args: ['cstring', 'u32'], returns: 'i32' },
  ubiblk_socket_port: { args: ['i32'], returns: 'i32' },
  ubiblk_socket_listens: { args: ['i32'], returns: 'i32' },
  ubiblk_stream_accept: { args: ['i32'], returns: 'i32' },
  ubiblk_socket_shutdown: { args: ['i32'], returns: 'i32' },
  ubiblk_file_extent: { args: ['i32', 'u64', 'u64'], returns: FFIType.i64_fast },
  ubiblk_eventfd: { args: [], returns: 'i32' },
  ubiblk_eventfd_signal: { args: ['i32'], returns: 'i32' },
  ubiblk_eventfd_signal_peer: { args: ['i32'], returns: 'i32' },
  ubiblk_eventfd_drain: { args: ['i32'], returns: 'i32' },
  ubiblk_is_eventfd: { args: ['i32'], returns: 'i32' },
  ubiblk_epoll: { args: [], returns: 'i32' },
  ubiblk_epoll_add: { args: ['i32', 'i32'], returns: 'i32' },
  ubiblk_epoll_remove: { args: ['i32', 'i32'], returns: 'i32' },
  ubiblk_epoll_wait: { args: ['i32'], returns: 'i32' },
  ubiblk_poll: { args: ['ptr', 'u32', 'i32'], returns: 'i32' },
  ubiblk_close: { args: ['i32'], returns: 'i32' },
  ubiblk_pin_thread: { args: ['u32'], returns: 'i32' },
  ubiblk_name_thread: { args: ['cstring'], returns: 'i32' },
  ubiblk_tls_open: { args: ['i32', 'ptr', 'u64', 'u32', 'ptr'], returns: 'i32' },
  ubiblk_tls_close: { args: ['u64'], returns: 'i32' },
  ubiblk_tls_step: { args: ['u64', 'ptr', 'ptr'], returns: 'i32' },
  ubiblk_tls_end: { args: ['u64', 'ptr'], returns: 'i32' },
  ubiblk_tls_error: { args: ['u64', 'ptr', 'u32'], returns: 'i32' },
  ubiblk_ublk_open: { args: ['ptr', 'ptr'], returns: 'i32' },
  ubiblk_ublk_close: { args: ['u64'], returns: 'i32' },
  ubiblk_ublk_command: { args: ['u64', 'u32', 'ptr', 'i32'], returns: 'i32' },
  ubiblk_ublk_await: { args: ['u64', 'i32'], returns: 'i32' },
  ubiblk_ublk_map: { args: ['i32', 'u32', 'u32'], returns: FFIType.i64_fast },
  ubiblk_ublk_unmap: { args: ['u64', 'u32'], returns: 'i32' },
  ubiblk_clock_ns: { args: [], returns: 'f64' },
  ubiblk_io_flusher: { args: [], returns: 'i32' },
  ubiblk_lock_memory: { args: [], returns: 'i32' },
  ubiblk_set_affinity: { args: ['ptr', 'u32'], returns: 'i32' },
  ubiblk_notify: { args: ['ptr', 'ptr'], returns: 'i32' },
} as const;

type Shim = ReturnType<typeof dlopen<typeof SYMBOLS>>['symbols'];

/** The shim's functions; set by `openLibrary` or `attachLibrary`, before which none may be called. */
export let shim: Shim;

const MFD_CLOEXEC = 1;
let libraryFd = -1;

/**
 * Opens the embedded shim in the main thread, once.
 * @returns the descriptor of the memory file, for `attachLibrary` in each Worker
 * @throws UserError where the kernel forbids memory files, large ones, or executing them
 */
export function openLibrary(): number {
  if (libraryFd >= 0) return libraryFd;
  const libc = dlopen('libc.so.6', {
    memfd_create: { args: ['cstring', 'u32'], returns: 'i32' },
  });
  const fd = libc.symbols.memfd_create(Buffer.from('libubiblk.so\0'), MFD_CLOEXEC);
  if (fd < 0) {
    throw new UserError(
      'this system does not let ubiblk make a memory file (memfd_create) for its native library; ' +
        'allow the system call in the seccomp profile',
    );
  }
  // Not imported above: a Worker that only attaches stays smaller without it.
  const { readFileSync, writeSync } = process.getBuiltinModule('node:fs');
  const bytes = readFileSync(embedded);
  let written = 0;
  try {
    written = writeSync(fd, bytes);
  } catch {
    // Told below.
  }
  // Opened in spite of that, it would end the process with SIGBUS.
  if (written !== bytes.length) {
    throw new UserError(
      `this system takes ${written} of the ${bytes.length} bytes of ubiblk's native library into a ` +
        'memory file; raise the limit on the size of files (ulimit -f)',
    );
  }
  attachLibrary(fd);
  libraryFd = fd;
  return fd;
}

/**
 * Opens the shim from the descriptor that `openLibrary` returned in the main thread.
 * @throws UserError where executing memory files is forbidden
 */
export function attachLibrary(fd: number): void {
  try {
    shim = dlopen(`/proc/self/fd/${fd}`, SYMBOLS).symbols;
  } catch (error) {
    throw new UserError(
      'this system does not let ubiblk load its native library from a memory file; set ' +
        `vm.memfd_noexec to 0 or 1 (${(error as Error).message.split('\n')[0]})`,
    );
  }
}

function textOf(write: (buf: Uint8Array, size: number) => number): string {
  const buf = Buffer.alloc(128);
  write(buf, buf.length);
  return buf.toString('utf8', 0, buf.indexOf(0));
}

/** Name and version of the cipher library linked into the shim. */
export function cipherLibrary(): string {
  openLibrary();
  return textOf((buf, size) => shim.ubiblk_cipher_library(buf, size));
}

/** Version of the liburing linked into the shim. */
export function liburingVersion(): string {
  openLibrary();
  return textOf((buf, size) => shim.ubiblk_liburing_version(buf, size));
}
