/*
 * The shim: what TypeScript can't say. No policy lives here. Every function returns a value >= 0,
 * or -errno. Addresses travel as uint64_t, because JavaScript keeps them as numbers.
 */
#ifndef UBIBLK_H
#define UBIBLK_H

#include <stddef.h>
#include <stdint.h>

#define UBIBLK_API __attribute__((visibility("default")))

/* uring.c */

/* Where a ring's shared parts are, for TypeScript to read and write. */
struct ubiblk_ring_layout {
    uint64_t handle;
    uint64_t sq_head, sq_tail, sq_flags, sqes;
    uint64_t cq_head, cq_tail, cqes;
    uint64_t sq_entries, cq_entries;
    uint64_t features, setup_flags;
};

enum ubiblk_spin_result {
    UBIBLK_SPIN_TIMEOUT = 0,
    UBIBLK_SPIN_AVAIL = 1,
    UBIBLK_SPIN_RING = 2,
    UBIBLK_SPIN_CROWDED = 4
};

UBIBLK_API int ubiblk_ring_create(uint32_t sq_entries, uint32_t cq_entries, uint32_t setup_flags,
                                  struct ubiblk_ring_layout *layout);
UBIBLK_API int ubiblk_ring_destroy(uint64_t handle);
UBIBLK_API int ubiblk_ring_enter(uint64_t handle, uint32_t to_submit, uint32_t min_complete,
                                 int32_t timeout_us);
UBIBLK_API int ubiblk_ring_gather(uint64_t handle, uint32_t to_submit, uint32_t count,
                                  uint32_t gather_us);
UBIBLK_API int ubiblk_ring_register_files(uint64_t handle, const int32_t *fds, uint32_t count);
UBIBLK_API int ubiblk_ring_update_files(uint64_t handle, uint32_t first, const int32_t *fds,
                                        uint32_t count);
UBIBLK_API int ubiblk_ring_register_buffers(uint64_t handle, const void *iovecs, uint32_t count);
UBIBLK_API int ubiblk_ring_register_places(uint64_t handle, uint32_t count);
UBIBLK_API int ubiblk_ring_unregister_buffers(uint64_t handle);
UBIBLK_API int ubiblk_ring_spin(uint64_t handle, uint64_t avail_idx, uint32_t seen,
                                uint32_t timeout_us);
UBIBLK_API int ubiblk_spin_avail(uint64_t avail_idx, uint32_t seen, uint32_t timeout_us);
UBIBLK_API int ubiblk_liburing_version(char *buf, uint32_t size);

/* file.c */

struct ubiblk_file_facts {
    uint64_t size;
    uint32_t is_block_device, read_only;
    uint32_t logical_block, physical_block, optimal_io;
    uint32_t direct_memory_align, direct_offset_align; /* 0: no direct I/O */
    uint32_t can_punch, can_zero_range;
    uint32_t direct_piece; /* bytes that the device takes in one go, a power of two */
};

UBIBLK_API int ubiblk_file_facts(int fd, struct ubiblk_file_facts *facts);
UBIBLK_API int ubiblk_file_probe_zeroing(int fd, struct ubiblk_file_facts *facts);
UBIBLK_API int ubiblk_file_lock(int fd, uint64_t start, uint64_t length, int exclusive);
UBIBLK_API int64_t ubiblk_preadv(int fd, uint64_t iov, int count, uint64_t offset);
UBIBLK_API int64_t ubiblk_pwritev(int fd, uint64_t iov, int count, uint64_t offset, int flags);
UBIBLK_API int64_t ubiblk_pread(int fd, uint64_t buf, uint64_t length, uint64_t offset);
UBIBLK_API int64_t ubiblk_pread_cached(int fd, uint64_t buf, uint64_t length, uint64_t offset);
UBIBLK_API int64_t ubiblk_pwrite(int fd, uint64_t buf, uint64_t length, uint64_t offset);
UBIBLK_API int ubiblk_fallocate(int fd, int mode, uint64_t offset, uint64_t length);
UBIBLK_API int ubiblk_fdatasync(int fd);
UBIBLK_API int ubiblk_file_link(int fd, const char *path);
UBIBLK_API int64_t ubiblk_file_birth(int fd);
UBIBLK_API int ubiblk_file_expect(int fd, uint64_t offset, uint64_t length);
int64_t ubiblk_file_read_all(const char *path, void *buf, uint64_t room);
int64_t ubiblk_write_out(int fd, const void *buf, uint64_t length, uint64_t offset);
int ubiblk_file_make(const char *names, const void *buf, uint64_t length);
int ubiblk_file_clone(int to, int from, uint64_t offset, uint64_t length);

/* lane.c */

/* What lanes do. */
enum {
    UBIBLK_JOB_READ,
    UBIBLK_JOB_READ_DATA, /* -ENODATA where all of the range is a hole */
    UBIBLK_JOB_WRITE,
    UBIBLK_JOB_WRITE_OUT, /* and begins to bring it from the page cache to storage */
    UBIBLK_JOB_SYNC,
    UBIBLK_JOB_ALLOCATE,
    UBIBLK_JOB_CLONE,
    UBIBLK_JOB_CLOSE,
    UBIBLK_JOB_SEND_FILE, /* to the socket extra, as much as it has room for */
    UBIBLK_JOB_SYNC_ALL,  /* all of the file's file system */
    UBIBLK_JOB_SEAL,      /* struct ubiblk_seal at the address */
    UBIBLK_JOB_UNSEAL,    /* struct ubiblk_unseal */
    UBIBLK_JOB_READ_FILE, /* of which the path is at the offset: all of it */
    UBIBLK_JOB_RECEIVE,   /* with patience for extra milliseconds */
    UBIBLK_JOB_MAKE_FILE  /* ubiblk_file_make, the names at the offset */
};

struct ubiblk_done {
    double ticket, result;
};

UBIBLK_API int ubiblk_lanes_start(void);
UBIBLK_API uint32_t ubiblk_lanes_reap(struct ubiblk_done *found, uint32_t most);
UBIBLK_API int ubiblk_lane_open(const char *name, uint32_t threads, uint64_t *handle);
UBIBLK_API int ubiblk_lane_submit(uint64_t handle, uint32_t op, uint32_t ticket, int fd,
                                  uint64_t address, uint64_t length, uint64_t offset, int extra);
UBIBLK_API void ubiblk_lane_close(uint64_t handle);

/* transfer.c */

int64_t ubiblk_send_file(int socket, int file, uint64_t offset, uint64_t length);
int64_t ubiblk_receive(int socket, void *memory, uint64_t room, int patience_ms);
UBIBLK_API int ubiblk_dup(int fd);

/* memory.c */

UBIBLK_API int64_t ubiblk_memory_map(uint64_t length);
UBIBLK_API int ubiblk_memory_unmap(uint64_t address, uint64_t length);
UBIBLK_API int64_t ubiblk_memory_map_shared(int fd, uint64_t offset, uint64_t length,
                                            uint64_t *mapping);
UBIBLK_API int ubiblk_memory_unmap_shared(uint64_t base, uint64_t length);
UBIBLK_API uint64_t ubiblk_memory_lost_counter(void);
UBIBLK_API int ubiblk_memory_memfd(const char *name, uint64_t length);
UBIBLK_API int ubiblk_memory_memfd_huge(const char *name, uint64_t length);
UBIBLK_API int ubiblk_memory_copy(uint64_t to, uint64_t from, uint64_t length);
UBIBLK_API int ubiblk_memory_gather(uint64_t to, uint64_t iov, uint32_t count, uint64_t skip,
                                    uint64_t length);
UBIBLK_API int ubiblk_memory_scatter(uint64_t iov, uint32_t count, uint64_t skip, uint64_t from,
                                     uint64_t length);
UBIBLK_API int ubiblk_memory_fill(uint64_t to, int byte, uint64_t length);

/* tls_psk.c */

/* What a step takes and gives; addresses and lengths in bytes. */
struct ubiblk_tls_io {
    uint64_t out;       /* for bytes to the peer */
    uint64_t plain_in;  /* to send */
    uint64_t plain_out; /* for what was received */
    uint32_t in_length, in_taken;
    uint32_t out_size, out_written;
    uint32_t plain_in_length, plain_written;
    uint32_t plain_out_size, plain_read;
};

UBIBLK_API int ubiblk_tls_open(int server, const char *identity, uint64_t secret,
                               uint32_t secret_length, uint64_t *handle);
UBIBLK_API int ubiblk_tls_close(uint64_t handle);
UBIBLK_API int ubiblk_tls_step(uint64_t handle, const uint8_t *in, struct ubiblk_tls_io *io);
UBIBLK_API int ubiblk_tls_end(uint64_t handle, struct ubiblk_tls_io *io);
UBIBLK_API int ubiblk_tls_error(uint64_t handle, char *buf, uint32_t size);

/* ublk.c */

UBIBLK_API int ubiblk_ublk_open(const char *path, uint64_t *handle);
UBIBLK_API int ubiblk_ublk_close(uint64_t handle);
UBIBLK_API int ubiblk_ublk_command(uint64_t handle, uint32_t op, const void *command,
                                   int32_t timeout_ms);
UBIBLK_API int ubiblk_ublk_await(uint64_t handle, int32_t timeout_ms);
UBIBLK_API int64_t ubiblk_ublk_map(int fd, uint32_t queue, uint32_t depth);
UBIBLK_API int ubiblk_ublk_unmap(uint64_t address, uint32_t depth);
UBIBLK_API double ubiblk_clock_ns(void);
UBIBLK_API int ubiblk_io_flusher(void);
UBIBLK_API int ubiblk_lock_memory(void);
UBIBLK_API int ubiblk_set_affinity(const void *mask, uint32_t bytes);

/* vhost_socket.c */

enum { UBIBLK_MAX_FDS = 32 };

UBIBLK_API int ubiblk_socket_listen(const char *path, uint32_t mode, uint64_t *identity);
UBIBLK_API int ubiblk_socket_remove(const char *path, const uint64_t *identity);
UBIBLK_API int ubiblk_socket_connect(const char *path);
UBIBLK_API int ubiblk_socket_accept(int fd);
UBIBLK_API int ubiblk_socket_gone(int fd);
UBIBLK_API int ubiblk_socket_receive(int fd, void *buf, uint32_t size, int32_t *fds,
                                     uint32_t *fd_count);
UBIBLK_API int ubiblk_socket_send(int fd, const void *buf, uint32_t size, const int32_t *fds,
                                  uint32_t fd_count);

/* stream_socket.c */

UBIBLK_API int ubiblk_set_blocking(int fd, int blocking);
UBIBLK_API int ubiblk_socket_pair(int32_t *fds);
UBIBLK_API int ubiblk_tcp_listen(const char *address, uint32_t port);
UBIBLK_API int ubiblk_socket_port(int fd);
UBIBLK_API int ubiblk_socket_listens(int fd);
UBIBLK_API int ubiblk_stream_accept(int fd);
UBIBLK_API int ubiblk_socket_shutdown(int fd);
UBIBLK_API int64_t ubiblk_file_extent(int fd, uint64_t offset, uint64_t end);

/* system.c */

UBIBLK_API int ubiblk_eventfd(void);
UBIBLK_API int ubiblk_eventfd_signal(int fd);
UBIBLK_API int ubiblk_eventfd_signal_peer(int fd);
UBIBLK_API int ubiblk_eventfd_drain(int fd);
UBIBLK_API int ubiblk_is_eventfd(int fd);
UBIBLK_API int ubiblk_epoll(void);
UBIBLK_API int ubiblk_epoll_add(int epoll, int fd);
UBIBLK_API int ubiblk_epoll_remove(int epoll, int fd);
UBIBLK_API int ubiblk_epoll_wait(int epoll);
UBIBLK_API int ubiblk_poll(int32_t *fds, uint32_t count, int timeout_ms);
UBIBLK_API int ubiblk_close(int fd);
UBIBLK_API int ubiblk_pin_thread(uint32_t cpu);
UBIBLK_API int ubiblk_name_thread(const char *name);
UBIBLK_API int ubiblk_notify(const char *path, const char *text);

#endif
