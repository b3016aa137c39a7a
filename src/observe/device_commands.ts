/** The RPC commands that every served disk answers. */
import type { RequestBoard } from '../device/request_board.ts';
import type { RpcCommands } from './rpc_protocol.ts';

/** How many stripes a lazy disk has, how many of them came with a source, and how many are fetched. */
export interface StripeCounts {
  fetched: number;
  source: number;
  total: number;
}

export interface ServedDevice {
  version: string;
  /** The counts, and whatever else there is to say; null for a disk without metadata. */
  status: () => StripeCounts | null;
  board: RequestBoard;
}

/** @returns `version`, `status` and `queues` */
export function deviceCommands({ version, status, board }: ServedDevice): RpcCommands {
  return {
    version: () => ({ version }),
    status: () => ({ status: statusAnswer(status()) }),
    queues: () => ({ queues: board.list() }),
  };
}

function statusAnswer(status: StripeCounts | null): object | null {
  if (!status) return null;
  const { fetched, source, total, ...others } = status;
  // Older releases gave the complement of `source`; clients of both are served.
  const stripes = { fetched, no_source: total - source, source, total };
  return { ...(snakeCased(others) as object), stripes };
}

/** The same value with keys as this protocol spells them: `inFlight` is `in_flight`. */
function snakeCased(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value;
  if (Array.isArray(value)) return value.map(snakeCased);
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => [
      key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
      snakeCased(inner),
    ]),
  );
}
