/** What any process tells of itself, by the names that all exporters use. */
import { readdirSync, readFileSync } from 'node:fs';
import type { MetricText } from './metric_text.ts';

export function processMetrics(text: MetricText): void {
  const { user, system } = process.cpuUsage();
  text.counter(
    'process_cpu_seconds',
    'User and system CPU time, in seconds.',
    (user + system) / 1e6,
  );
  text.gauge(
    'process_start_time_seconds',
    'When the process began, in seconds since 1970.',
    performance.timeOrigin / 1000,
  );
  text.gauge('process_resident_memory_bytes', 'Memory that is in use.', process.memoryUsage.rss());
  text.gauge('process_open_fds', 'Open file descriptors.', readdirSync('/proc/self/fd').length);
  const limit = /^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'));
  if (limit) text.gauge('process_max_fds', 'Most that may be open.', Number(limit[1]));
}
