/** Samples that a server might have given. */
import type { Sample } from '../../src/top/sample.ts';

export interface Made {
  atMs?: number;
  uptimeS?: number | null;
  pid?: number | null;
  reads?: number;
  writes?: number;
  inFlight?: number;
  fetched?: number;
  failing?: number;
  errors?: number;
}

/** A server that has read and written so many requests of 4 KiB, each in 100 us. */
export function sample(made: Made = {}): Sample {
  const { atMs = 0, reads = 0, writes = 0, inFlight = 0, fetched, failing = 0, errors = 0 } = made;
  const { uptimeS = atMs / 1000, pid = 7 } = made;
  return {
    atMs,
    uptimeS,
    pid,
    name: 'disk',
    connected: true,
    counters: {
      readBytes: reads * 4096,
      writtenBytes: writes * 4096,
      readOps: reads,
      writeOps: writes,
      flushOps: 0,
      errors,
      buckets: { read: [[100, reads]], write: writes > 0 ? [[100, writes]] : [] },
      fetchedBytes: 0,
    },
    queues: [
      {
        readBytes: reads * 4096,
        writtenBytes: writes * 4096,
        readOps: reads,
        writeOps: writes,
        inFlight,
        oldestMs: inFlight,
      },
    ],
    stripes:
      fetched === undefined
        ? null
        : {
            total: 100,
            source: 80,
            fetched,
            failing,
            failure: failing > 0 ? 'stripe 3: EIO: i/o error, read' : '',
            queued: 2,
            inFlight: 1,
            autofetch: true,
          },
  };
}
