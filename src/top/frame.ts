/** The picture of all disks, as lines that fit a terminal. */
import { escapeControls } from '../log.ts';
import type { View } from './watch.ts';
import {
  bytesText,
  countText,
  cut,
  cutStart,
  durationText,
  latencyText,
  pad,
  sparkline,
} from './words.ts';

export interface FrameSize {
  columns: number;
  rows: number;
  colour: boolean;
}

interface Column {
  title: string;
  width: number;
  /** Columns of higher numbers are left out first where there is no room. */
  rank: number;
  text(view: View): string;
}

const NAME_WIDTH = 36;
const LEAST_NAME_WIDTH = 12;
const HISTORY_WIDTH = 40;
const LEAST_HISTORY_WIDTH = 8;
const GAP = 2;
const BAR_WIDTH = 30;

const columns: readonly Column[] = [
  { title: 'READ/S', width: 10, rank: 0, text: ({ rates }) => rateText(rates?.readBytes) },
  { title: 'WRITE/S', width: 10, rank: 0, text: ({ rates }) => rateText(rates?.writtenBytes) },
  {
    title: 'IOPS',
    width: 6,
    rank: 0,
    text: ({ rates }) => (rates ? countText(rates.readOps + rates.writeOps + rates.flushOps) : '-'),
  },
  { title: 'DEPTH', width: 5, rank: 1, text: ({ inFlight }) => String(inFlight) },
  { title: 'READ P99', width: 8, rank: 2, text: (view) => latencyText(view.latencyUs.read?.p99) },
  { title: 'WRITE P99', width: 9, rank: 3, text: (view) => latencyText(view.latencyUs.write?.p99) },
  { title: 'FAILED', width: 6, rank: 4, text: (view) => countText(failures(view)) },
  { title: 'STRIPES', width: 7, rank: 5, text: ({ stripes }) => shareText(stripes) },
  { title: 'LEFT', width: 12, rank: 6, text: ({ stripes }) => leftText(stripes) },
];

/** @returns lines without their ends: no more than rows, none longer than columns */
export function frame(views: readonly View[], intervalS: number, size: FrameSize): string[] {
  const paint = painter(size.colour);
  const width = size.columns - 1;
  const head = paint.bold(cut(headText(views, intervalS), width));
  const table = tableLines(views, width, paint);
  const details = views.map((view) => detailLines(view, width, paint));
  const room = size.rows - 1 - table.length - 1;
  const lines = [head, ...table];
  let left = room;
  for (const [i, block] of details.entries()) {
    if (block.length + 2 > left) break;
    lines.push('', paint.bold(cutStart(name(views[i]), width)), ...block);
    left -= block.length + 2;
  }
  return lines.slice(0, size.rows - 1);
}

function headText(views: readonly View[], intervalS: number): string {
  const sum = (of: (rates: NonNullable<View['rates']>) => number) =>
    views.reduce((all, { rates }) => all + (rates ? of(rates) : 0), 0);
  const there = views.filter(({ problem }) => problem === null).length;
  const disks = views.length === 1 ? '1 disk' : `${there} of ${views.length} disks`;
  return (
    `ubiblk top: ${disks}, read ${bytesText(sum((r) => r.readBytes))}/s, write ` +
    `${bytesText(sum((r) => r.writtenBytes))}/s, ` +
    `${countText(sum((r) => r.readOps + r.writeOps + r.flushOps))} IOPS; every ${intervalS} s; q quits`
  );
}

function tableLines(views: readonly View[], width: number, paint: Painter): string[] {
  const longest = Math.max(4, ...views.map((view) => Bun.stringWidth(name(view))));
  const wanted = Math.min(longest, NAME_WIDTH);
  let shown = [...columns];
  const taken = () => shown.reduce((all, column) => all + GAP + column.width, 0);
  const isTooWide = () => taken() + Math.min(wanted, LEAST_NAME_WIDTH) > width;
  while (shown.some(({ rank }) => rank > 0) && isTooWide()) {
    const rank = Math.max(...shown.map((column) => column.rank));
    shown = shown.filter((column) => column.rank < rank);
  }
  const nameWidth = Math.max(Math.min(wanted, width - taken()), 0);
  const historyWidth = Math.min(width - nameWidth - taken() - GAP, HISTORY_WIDTH);
  const withHistory = historyWidth >= LEAST_HISTORY_WIDTH;
  const gap = ' '.repeat(GAP);
  const titles = shown.map(({ title, width: w }) => pad(title, w, true));
  const head = [pad('DISK', nameWidth, false), ...titles, ...(withHistory ? ['HISTORY'] : [])];
  return [
    paint.dim(cut(head.join(gap), width)),
    ...views.map((view) => {
      const first = pad(cutStart(name(view), nameWidth), nameWidth, false);
      if (view.problem !== null) {
        return paint.red(cut(`${first}${gap}${escapeControls(view.problem)}`, width));
      }
      const cells = shown.map(({ text, width: w }) => pad(cut(text(view), w), w, true));
      if (withHistory) cells.push(sparkline(view.history, historyWidth));
      const line = cut([first, ...cells].join(gap), width);
      return failures(view) > 0 ? paint.red(line) : line;
    }),
  ];
}

function detailLines(view: View, width: number, paint: Painter): string[] {
  if (view.problem !== null) return [];
  const lines = [stateText(view)];
  for (const [op, of] of Object.entries(view.latencyUs)) {
    if (!of) continue;
    const { p50, p99, p999 } = of;
    const texts = [
      `p50 ${latencyText(p50)}`,
      `p99 ${latencyText(p99)}`,
      `p99.9 ${latencyText(p999)}`,
    ];
    lines.push(
      `  ${pad(op, 8, false)}${texts.map((text) => pad(text, 16, false)).join('')}`.trimEnd(),
    );
  }
  if (view.queues.length > 1) {
    view.queues.forEach(({ readBytes, writtenBytes, ops, inFlight }, i) => {
      lines.push(
        `  queue ${i}: read ${bytesText(readBytes)}/s, write ${bytesText(writtenBytes)}/s, ` +
          `${countText(ops)} IOPS, ${inFlight} in flight`,
      );
    });
  }
  const { stripes } = view;
  if (stripes) lines.push(...stripeLines(stripes));
  const painted = lines.map((line) => cut(line, width));
  if (stripes && stripes.failing > 0) {
    const text = `  ${stripes.failing} failing; ${escapeControls(stripes.failure)}`;
    painted.push(paint.red(cut(text, width)));
  }
  return painted;
}

function stateText({ connected, uptimeS, restarts, oldestMs, inFlight, errors }: View): string {
  const texts = [];
  if (connected !== null) texts.push(connected ? 'connected' : 'nobody is connected');
  if (uptimeS !== null) texts.push(`up ${durationText(uptimeS)}`);
  if (restarts > 0) texts.push(restarts === 1 ? 'restarted once' : `restarted ${restarts} times`);
  if (inFlight > 0) texts.push(`oldest request ${latencyText(oldestMs * 1000)}`);
  if (errors > 0) texts.push(`${countText(errors)} requests failed`);
  return `  ${texts.join(', ')}`;
}

function stripeLines(stripes: NonNullable<View['stripes']>): string[] {
  const { fetched, source, queued, inFlight, autofetch } = stripes;
  const done = source === 0 ? 1 : fetched / source;
  const full = Math.floor(done * BAR_WIDTH);
  const bar = '#'.repeat(full) + '-'.repeat(BAR_WIDTH - full);
  const left = leftText(stripes);
  return [
    `  stripes [${bar}] ${shareText(stripes)}, ${fetched} of ${source}${left === '-' ? '' : `, ${left} left`}`,
    `  ${queued} waiting, ${inFlight} under way, autofetch ${autofetch ? 'on' : 'off'}`,
  ];
}

function name({ socket }: View): string {
  return escapeControls(socket);
}

function failures({ errors, stripes }: View): number {
  return errors + (stripes?.failing ?? 0);
}

function rateText(bytes: number | undefined): string {
  return bytes === undefined ? '-' : bytesText(bytes);
}

function shareText(stripes: View['stripes']): string {
  if (!stripes) return '-';
  const { fetched, source } = stripes;
  return `${source === 0 ? 100 : Math.floor((fetched / source) * 100)} %`;
}

function leftText(stripes: View['stripes']): string {
  const seconds = stripes?.secondsLeft;
  return seconds ? durationText(seconds) : '-';
}

type Painter = Record<'bold' | 'dim' | 'red', (text: string) => string>;

function painter(colour: boolean): Painter {
  const paint = (code: number, end: number) => (text: string) =>
    colour && text !== '' ? `\x1b[${code}m${text}\x1b[${end}m` : text;
  return { bold: paint(1, 22), dim: paint(2, 22), red: paint(31, 39) };
}
