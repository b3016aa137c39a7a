import { openLibrary, shim } from '../../ffi/library.ts';

/**
 * Tells the service manager that started this process, if one asks (NOTIFY_SOCKET, sd_notify(3)).
 * @param state assignments, as `READY=1`
 */
export function notifyServiceManager(state: string): void {
  const socket = process.env.NOTIFY_SOCKET;
  if (!socket) return;
  openLibrary();
  // Whether it hears is its own affair.
  shim.ubiblk_notify(Buffer.from(`${socket}\0`), Buffer.from(`${state}\0`));
}
