import { FETCHED, HAS_SOURCE, WRITTEN } from '../stripe/shared_state.ts';

export interface MapSettings {
  /** Of the place that there is. */
  columns: number;
  rows: number;
  colours: boolean;
  stripeBytes: number;
  /** The last stripe may be partial. */
  lastStripeBytes: number;
}

/** What a stripe, or all stripes of a cell, are. */
const kinds = [
  { name: 'missing', sign: '.', colour: '\x1b[31m' },
  { name: 'local', sign: '=', colour: '\x1b[32m' },
  { name: 'written', sign: '#', colour: '\x1b[36m' },
] as const;
const MISSING = 0;
const LOCAL = 1;
const WRITTEN_KIND = 2;
const mixed = { name: 'mixed', sign: '~', colour: '\x1b[33m' };
const plainColour = '\x1b[0m';

/** Above and below the cells: the scale, an empty line, the legend, the partial stripe, the prompt. */
const OTHER_ROWS = 6;
const MIN_CELLS_IN_ROW = 8;

/**
 * A picture of a disk's stripes: rows of cells, each of which stands for so many stripes that all fit
 * into the place there is, and what the cells mean.
 * @param headers one for each stripe
 */
export function stripeMap(headers: Uint8Array, settings: MapSettings): string {
  const { stripeBytes, lastStripeBytes, columns, rows } = settings;
  const labelLength = String(Math.max(headers.length - 1, 0)).length;
  const width = cellsInRow(columns - labelLength - 2);
  const height = Math.max(rows - OTHER_ROWS, 1);
  const perCell = Math.max(Math.ceil(headers.length / (width * height)), 1);
  const counts = [0, 0, 0];
  let text = `${headers.length} stripes of ${stripeBytes} bytes, ${scale(perCell)}\n\n`;
  for (let first = 0; first < headers.length; first += width * perCell) {
    text += `${String(first).padStart(labelLength)}  `;
    text += cellRow(headers.subarray(first, first + width * perCell), perCell, counts, settings);
    text += '\n';
  }
  text += `\n${legend(counts, perCell, settings)}\n`;
  if (lastStripeBytes < stripeBytes) {
    text += `stripe ${headers.length - 1}, the last one, has only ${lastStripeBytes} bytes\n`;
  }
  return text;
}

/** Round numbers, so that the first stripe of a row is one too. */
function cellsInRow(columns: number): number {
  const most = Math.max(columns, MIN_CELLS_IN_ROW);
  if (most < 10) return most;
  return most - (most % 10);
}

function scale(perCell: number): string {
  return perCell === 1 ? 'one in each place' : `${perCell} in each place`;
}

function cellRow(
  headers: Uint8Array,
  perCell: number,
  counts: number[],
  { colours }: MapSettings,
): string {
  let text = '';
  let colour = '';
  for (let first = 0; first < headers.length; first += perCell) {
    const cell = cellOf(headers.subarray(first, first + perCell), counts);
    if (colours && cell.colour !== colour) text += cell.colour;
    colour = cell.colour;
    text += cell.sign;
  }
  return colours ? `${text}${plainColour}` : text;
}

/** @param counts of stripes of each kind, which are added to */
function cellOf(headers: Uint8Array, counts: number[]): { sign: string; colour: string } {
  let seen = 0;
  for (const header of headers) {
    const kind = kindOf(header);
    counts[kind]++;
    seen |= 1 << kind;
  }
  const only = kinds.findIndex((_, kind) => seen === 1 << kind);
  return only < 0 ? mixed : kinds[only];
}

/** A stripe that is still to be fetched is missing, whatever was noted of writes to it. */
function kindOf(header: number): number {
  if ((header & (HAS_SOURCE | FETCHED)) === HAS_SOURCE) return MISSING;
  return (header & WRITTEN) !== 0 ? WRITTEN_KIND : LOCAL;
}

function legend(counts: readonly number[], perCell: number, { colours }: MapSettings): string {
  const paint = (sign: string, colour: string) =>
    colours ? `${colour}${sign}${plainColour}` : sign;
  const entries = [LOCAL, WRITTEN_KIND, MISSING].map((kind) => {
    const { name, sign, colour } = kinds[kind];
    return `${paint(sign, colour)} ${name} ${counts[kind]}`;
  });
  if (perCell > 1) entries.push(`${paint(mixed.sign, mixed.colour)} ${mixed.name}`);
  return entries.join('   ');
}
