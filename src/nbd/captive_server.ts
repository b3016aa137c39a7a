/**
 * An NBD server that is started for one user and ends with it, by systemd's socket activation
 * (sd_listen_fds(3)), as nbdcopy and nbdublk take it: `[ nbdkit ... ]`.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Subprocess } from 'bun';
import { shim } from '../../ffi/library.ts';
import { ListeningSocket } from '../../ffi/listening_socket.ts';
import { errorName, UserError } from '../errors.ts';
import type { Log } from '../log.ts';

const SOCKET_MODE = 0o600;
/** How long it may take to end by itself. */
const END_PATIENCE_MS = 3000;

export class CaptiveServer {
  private ending = false;

  private constructor(
    readonly socket: string,
    private readonly folder: string,
    private readonly child: Subprocess,
    private readonly name: string,
    log: Log,
  ) {
    void child.exited.then((status) => {
      if (!this.ending)
        log.warn(`the NBD server '${name}' has ended with ${child.signalCode ?? status}`);
    });
  }

  /**
   * Starts it. Whoever connects to `socket` waits until it answers.
   * @param command the program and its arguments
   * @throws UserError where there is no such program
   */
  static start(command: readonly string[], log: Log): CaptiveServer {
    const [name] = command;
    if (!Bun.which(name)) throw new UserError(`the NBD server '${name}' is not to be found`);
    const folder = mkdtempSync(join(tmpdir(), 'ubiblk-nbd-'));
    try {
      const socket = ListeningSocket.make(join(folder, 'socket'), SOCKET_MODE);
      // The server takes a socket that blocks; and the process is only known to itself.
      shim.ubiblk_set_blocking(socket.fd, 1);
      const child = Bun.spawn(['/bin/sh', '-c', 'LISTEN_PID=$$ exec "$@"', 'sh', ...command], {
        env: { ...process.env, LISTEN_FDS: '1', LISTEN_FDNAMES: 'nbd' },
        // The fourth is descriptor 3, the first that is passed.
        stdio: ['ignore', 'inherit', 'inherit', socket.fd],
      });
      shim.ubiblk_close(socket.fd);
      return new CaptiveServer(socket.path, folder, child, name, log);
    } catch (error) {
      rmSync(folder, { recursive: true, force: true });
      throw new UserError(`the NBD server '${name}' can't be started: ${errorName(error)}`);
    }
  }

  /** Resolves with a sentence when it has ended. */
  get ended(): Promise<string> {
    return this.child.exited.then(
      (status) => `the NBD server '${this.name}' has ended with ${this.child.signalCode ?? status}`,
    );
  }

  /** Ends it, politely first. */
  async stop(): Promise<void> {
    this.ending = true;
    this.child.kill('SIGTERM');
    const patience = setTimeout(() => this.child.kill('SIGKILL'), END_PATIENCE_MS);
    await this.child.exited;
    clearTimeout(patience);
    rmSync(this.folder, { recursive: true, force: true });
  }
}
