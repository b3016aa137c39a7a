/** Views for scripts and logs: a line, or a JSON object, for each disk and look. */
import { escapeControls } from '../log.ts';
import type { View } from './watch.ts';
import { bytesText, countText, durationText, latencyText } from './words.ts';

/** @returns a line without its end */
export function plainLine(view: View, at: Date): string {
  const head = `${at.toTimeString().slice(0, 8)} ${escapeControls(view.socket)}:`;
  if (view.problem !== null) return `${head} ${escapeControls(view.problem)}`;
  const { rates, latencyUs, inFlight, stripes, errors } = view;
  if (!rates) return `${head} ${inFlight} in flight, no rates yet`;
  const texts = [
    `read ${bytesText(rates.readBytes)}/s`,
    `write ${bytesText(rates.writtenBytes)}/s`,
    `${countText(rates.readOps + rates.writeOps + rates.flushOps)} IOPS`,
    `${inFlight} in flight`,
  ];
  for (const [op, of] of Object.entries(latencyUs)) {
    if (of) texts.push(`${op} p99 ${latencyText(of.p99)}`);
  }
  if (stripes) texts.push(`stripes ${stripes.fetched} of ${stripes.source}`);
  if (stripes?.secondsLeft) texts.push(`${durationText(stripes.secondsLeft)} left`);
  if (stripes && stripes.failing > 0) texts.push(`${stripes.failing} failing`);
  if (errors > 0) texts.push(`${errors} failed`);
  return `${head} ${texts.join(', ')}`;
}

/** @returns one line of JSON without its end: keys as on the RPC socket, numbers a second where `rates` says so */
export function jsonLine(views: readonly View[], at: Date): string {
  const disks = views.map((view) => ({
    socket: view.socket,
    problem: view.problem,
    connected: view.connected,
    uptime_s: view.uptimeS,
    restarts: view.restarts,
    rates: view.rates && {
      bytes_read: view.rates.readBytes,
      bytes_written: view.rates.writtenBytes,
      read_ops: view.rates.readOps,
      write_ops: view.rates.writeOps,
      flush_ops: view.rates.flushOps,
      errors: view.rates.errors,
      bytes_fetched: view.rates.fetchedBytes,
    },
    latency_us: view.latencyUs,
    in_flight: view.inFlight,
    oldest_ms: view.oldestMs,
    errors: view.errors,
    stripes: view.stripes && {
      total: view.stripes.total,
      source: view.stripes.source,
      fetched: view.stripes.fetched,
      failing: view.stripes.failing,
      seconds_left: view.stripes.secondsLeft,
    },
  }));
  return JSON.stringify({ at: at.toISOString(), disks });
}
