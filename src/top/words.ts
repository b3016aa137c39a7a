/** Numbers as the views show them. */
import { sizeText } from '../size_text.ts';

/** `12.3 MiB`: bytes, or bytes a second. */
export function bytesText(bytes: number): string {
  return sizeText(Math.round(bytes)).replace('bytes', 'B');
}

/** `850`, `12.3k`, `1.2M`. */
export function countText(count: number): string {
  if (count < 9999.5) return String(Math.round(count));
  return count < 999_950 ? `${(count / 1e3).toFixed(1)}k` : `${(count / 1e6).toFixed(1)}M`;
}

/** `85 us`, `1.2 ms`, `3.4 s`; `-` where there is none. */
export function latencyText(us: number | undefined): string {
  if (us === undefined) return '-';
  if (us < 999.5) return `${Math.round(us)} us`;
  return us < 999_500 ? `${(us / 1e3).toFixed(1)} ms` : `${(us / 1e6).toFixed(1)} s`;
}

/** `45 s`, `3 min 20 s`, `5 h 10 min`, `3 d 4 h`. */
export function durationText(seconds: number): string {
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

const STEPS = ' ▁▂▃▄▅▆▇█';

/** A picture of the last values, as many as fit; the largest of those has full height. */
export function sparkline(values: readonly number[], width: number): string {
  const shown = values.slice(-width);
  const most = Math.max(...shown, 0);
  const step = (value: number) => (value > 0 ? Math.max(Math.round((value / most) * 8), 1) : 0);
  return shown.map((value) => STEPS[step(value)]).join('');
}

/** As many characters of a text as fit, with `…` where some are left out. */
export function cut(text: string, width: number): string {
  if (Bun.stringWidth(text) <= width) return text;
  let short = '';
  for (const character of text) {
    if (Bun.stringWidth(short + character) > width - 1) break;
    short += character;
  }
  return width > 0 ? `${short}…` : '';
}

/** The same, but the end is kept: of paths that is what tells them apart. */
export function cutStart(text: string, width: number): string {
  if (Bun.stringWidth(text) <= width) return text;
  let short = '';
  for (const character of [...text].reverse()) {
    if (Bun.stringWidth(short + character) > width - 1) break;
    short = character + short;
  }
  return width > 0 ? `…${short}` : '';
}

export function pad(text: string, width: number, right: boolean): string {
  const room = ' '.repeat(Math.max(width - Bun.stringWidth(text), 0));
  return right ? room + text : text + room;
}
