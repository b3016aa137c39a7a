/** Answers of the RPC socket as people read them: a name and a value on each line. */
import { escapeControls } from '../log.ts';
import { sizeText } from '../size_text.ts';

type Fields = Record<string, unknown>;
type Row = [name: string, value: string];

/** @returns lines, each with its end; answers of any server, also of commands that are not known here */
export function rpcText(answer: Fields): string {
  const { device, ...asked } = answer;
  // What was not asked for in the first place comes last.
  const told = device === undefined ? asked : { ...asked, device };
  const rows = Object.entries(told).flatMap(([name, value]) => rowsOf(name, value));
  return rows
    .map(([name, value]) => `${`${name.padEnd(18)} ${escapeControls(value)}`.trimEnd()}\n`)
    .join('');
}

function rowsOf(name: string, value: unknown): Row[] {
  if (name === 'status') return value === null ? [noMetadata] : statusRows(value);
  if (name === 'stats' && isFields(value) && isListOfFields(value.queues)) {
    return value.queues.flatMap(statsRows);
  }
  if (name === 'queues' && isListOfLists(value)) return value.flatMap(queueRows);
  return plainRows(name, value);
}

const noMetadata: Row = ['stripes', 'none: the disk has no metadata'];

function statusRows(status: unknown): Row[] {
  if (!isFields(status) || !isFields(status.stripes)) return plainRows('status', status);
  const { stripes, ...others } = status;
  const { fetched, source, total, no_source, ...counts } = stripes as Record<string, number>;
  const share = source > 0 ? ` (${Math.floor((fetched / source) * 100)} %)` : '';
  return [
    ['stripes', `${total}, ${source} of them with a source`],
    ['fetched', `${fetched} of ${source}${share}`],
    ...[counts, others].flatMap((fields) =>
      Object.entries(fields).flatMap(([name, value]) => plainRows(name, value)),
    ),
  ];
}

function queueRows(requests: unknown[], queue: number): Row[] {
  const count = requests.length === 0 ? 'idle' : `${requests.length} in flight`;
  return [
    [`queue ${queue}`, count],
    ...requests.map((request): Row => {
      const [op, sector, sectors] = request as [string, number?, number?];
      return [`  ${op}`, sector === undefined ? '' : `sector ${sector}, ${sectors} sectors`];
    }),
  ];
}

/** Operations by the keys of their numbers of requests and bytes. */
const COUNTED = [
  ['read', 'read_ops', 'bytes_read'],
  ['write', 'write_ops', 'bytes_written'],
  ['flush', 'flush_ops', ''],
  ['discard', 'discard_ops', 'bytes_discarded'],
  ['write_zeroes', 'write_zeroes_ops', 'bytes_zeroed'],
] as const;

function statsRows(queue: Fields, index: number): Row[] {
  const { in_flight, oldest_ms, refused } = queue as Record<string, number | undefined>;
  const flying = in_flight ? `${in_flight} in flight, the oldest for ${oldest_ms} ms` : 'idle';
  const rows: Row[] = [[`queue ${index}`, flying]];
  for (const [op, ops, bytes] of COUNTED)
    if (queue[ops]) rows.push([`  ${op}`, opText(queue, op, ops, bytes)]);
  if (refused) rows.push(['  refused', String(refused)]);
  return rows;
}

function opText(queue: Fields, op: string, ops: string, bytes: string): string {
  const parts = [`${queue[ops]} requests`];
  if (bytes !== '') parts.push(sizeText(queue[bytes] as number));
  const errors = isFields(queue.errors) ? queue.errors[op] : 0;
  if (errors) parts.push(`${errors} failed`);
  const latency = isFields(queue.latency_us) ? queue.latency_us[op] : null;
  if (isFields(latency)) {
    parts.push(`mean ${latency.mean} us, p99 ${latency.p99} us, longest ${latency.max} us`);
  }
  return parts.join(', ');
}

/** Fields of fields by both names; lists on one line. */
function plainRows(name: string, value: unknown): Row[] {
  if (isFields(value)) {
    return Object.entries(value).flatMap(([inner, of]) => plainRows(`${name} ${inner}`, of));
  }
  if (!Array.isArray(value)) return [[words(name), textOf(value)]];
  if (value.some(isFields)) return value.flatMap((of, i) => plainRows(`${name} ${i}`, of));
  return [[words(name), value.length === 0 ? 'none' : value.map(textOf).join(', ')]];
}

function words(name: string): string {
  return name.replaceAll('_', ' ');
}

function textOf(value: unknown): string {
  if (value === null) return 'none';
  return typeof value === 'string' ? value : JSON.stringify(value);
}

function isFields(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isListOfFields(value: unknown): value is Fields[] {
  return Array.isArray(value) && value.every(isFields);
}

function isListOfLists(value: unknown): value is unknown[][][] {
  return Array.isArray(value) && value.every((of) => Array.isArray(of) && of.every(Array.isArray));
}
