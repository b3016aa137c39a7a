/** What is measured, and what each figure must reach against the peer. */

/** Where the data is: in the page cache, behind O_DIRECT, or nowhere. */
export type Place = 'cache' | 'null' | 'direct';
export type Access = 'randread' | 'randwrite' | 'read' | 'write';

export interface Row {
  name: string;
  place: Place;
  access: Access;
  blockBytes: number;
  depth: number;
  queues: number;
  /** The client spins for completions instead of sleeping. */
  poll: boolean;
  /** With keys; compared with our own server without. */
  encrypted?: boolean;
  /** With metadata of a disk on which everything is local; compared likewise. */
  lazy?: boolean;
  targets: Target[];
}

/** A bound on our figure divided by another one. */
export interface Target {
  /** Of both sides: requests a second, mean latency, the server's CPU time for a request. */
  figure: 'iops' | 'latency' | 'cpu';
  atLeast?: number;
  atMost?: number;
  /** The figure of our own row with one queue instead of the peer's. */
  ofOneQueue?: boolean;
}

const kibibyte = 1024;

function name(row: Omit<Row, 'name' | 'targets'>): string {
  const size =
    row.blockBytes >= 1 << 20 ? `${row.blockBytes >> 20}M` : `${row.blockBytes / kibibyte}K`;
  const queues = row.queues > 1 ? ` q${row.queues}` : '';
  const kind = row.encrypted ? 'encrypted ' : row.lazy ? 'lazy ' : '';
  const place = `${kind}${row.place}`;
  return `${place} ${row.access} ${size} d${row.depth}${queues}${row.poll ? ' poll' : ''}`;
}

function small(place: Place, access: Access, depth: number, poll: boolean): Row {
  const row = { place, access, blockBytes: 4 * kibibyte, depth, queues: 1, poll };
  return { ...row, name: name(row), targets: smallTargets(place, depth, poll) };
}

function smallTargets(place: Place, depth: number, poll: boolean): Target[] {
  if (place === 'direct') {
    const speed: Target =
      depth === 1 ? { figure: 'latency', atMost: 1 } : { figure: 'iops', atLeast: 1 };
    return [speed, { figure: 'cpu', atMost: 0.7 }];
  }
  if (depth === 1) return [{ figure: 'latency', atMost: 0.5 }];
  if (place === 'null') return [{ figure: 'iops', atLeast: 2 }];
  return [{ figure: 'iops', atLeast: poll ? 1.8 : 1.5 }];
}

function sequential(place: Place, access: Access, blockBytes: number): Row {
  const row = { place, access, blockBytes, depth: 32, queues: 1, poll: false };
  const targets: Target[] = [{ figure: 'iops', atLeast: 1 }];
  if (place === 'direct') targets.push({ figure: 'cpu', atMost: 0.7 });
  return { ...row, name: name(row), targets };
}

/** Two client threads and two queues. Where the cores are fewer, CPU per request must stay flat. */
function twoQueues(place: Place, poll: boolean, cores: number): Row {
  const row = {
    place,
    access: 'randread' as const,
    blockBytes: 4 * kibibyte,
    depth: 32,
    queues: 2,
    poll,
  };
  const scaling: Target =
    cores >= 4
      ? { figure: 'iops', atLeast: 1.6, ofOneQueue: true }
      : { figure: 'cpu', atMost: 1.1, ofOneQueue: true };
  return { ...row, name: name(row), targets: [scaling] };
}

/** Encrypted against plain. The bound on random reads depends on the cipher library. */
function encrypted(place: Place, access: Access, blockBytes: number, isal: boolean): Row {
  const row = { place, access, blockBytes, depth: 32, queues: 1, poll: false, encrypted: true };
  const bound = isal ? 0.75 : 0.6;
  const bounded = access === 'randread' && place === 'cache';
  const targets: Target[] = bounded ? [{ figure: 'iops', atLeast: bound }] : [];
  return { ...row, name: name(row), targets };
}

function encryptedRows(isal: boolean): Row[] {
  const rows: Row[] = [];
  for (const place of ['cache', 'direct'] as const) {
    for (const access of ['randread', 'randwrite'] as const) {
      rows.push(encrypted(place, access, 4 * kibibyte, isal));
    }
    for (const access of ['read', 'write'] as const) {
      rows.push(encrypted(place, access, 1 << 20, isal));
    }
  }
  return rows;
}

/** A disk with metadata, all of it local, against one without. */
function lazyRows(): Row[] {
  return (['randread', 'randwrite'] as const).map((access) => {
    const blockBytes = 4 * kibibyte;
    const row = { place: 'cache' as const, access, blockBytes, depth: 32, queues: 1 };
    const full = { ...row, poll: true, lazy: true };
    return { ...full, name: name(full), targets: [{ figure: 'iops' as const, atLeast: 0.97 }] };
  });
}

/**
 * All rows, in the order in which they run.
 * @param isal whether isa-l_crypto is linked in
 */
export function allRows(cores: number, isal: boolean): Row[] {
  const rows: Row[] = [];
  for (const place of ['cache', 'null', 'direct'] as const) {
    for (const depth of [1, 32]) {
      for (const access of ['randread', 'randwrite'] as const) {
        for (const poll of [false, true]) rows.push(small(place, access, depth, poll));
      }
    }
    if (place === 'direct') {
      rows.push(twoQueues(place, false, cores));
    } else {
      for (const poll of [false, true]) rows.push(twoQueues(place, poll, cores));
    }
    if (place === 'null') continue;
    for (const blockBytes of [128 * kibibyte, 1 << 20]) {
      for (const access of ['read', 'write'] as const) {
        rows.push(sequential(place, access, blockBytes));
      }
    }
  }
  return [...rows, ...encryptedRows(isal), ...lazyRows()];
}
