/** `ubiblk top` on a terminal (tmux), in scripts, and beside servers that come and go. */
import { expect, test } from 'bun:test';
import { symlinkSync } from 'node:fs';
import { lazyDisk } from './lazy.ts';
import { binary, client, keyValues } from './processes.ts';
import { Bed, need, testWith } from './support.ts';
import { Terminal } from './terminal.ts';

const MIB = 1 << 20;

const needs = [need.program('tmux')];

async function busyServer(bed: Bed, name: string) {
  const rpc = bed.path(`${name}.sock`);
  const server = await bed.serve(bed.disk(), { num_queues: 2, rpc_socket_path: rpc });
  const load = keyValues({ ops: 1e9, progress: 1, queues: 2, depth: 8, mix: 'rwf', max: 16384 });
  const user = bed.spawn([client('vhost-check'), server.socket, ...load]);
  await user.said(/answers/, 30_000);
  return { ...server, rpc, user };
}

testWith(
  'a live picture on a wide terminal, which gets narrow; q ends it and gives the terminal back',
  needs,
  async () => {
    await using bed = new Bed();
    const server = await busyServer(bed, 'a');
    const argv = [binary, 'top', '--interval', '0.2', '--socket', server.rpc];
    using terminal = new Terminal(bed, argv, 150, 40);
    const wide = await terminal.shows(/HISTORY\n.* MiB .*[▁▂▃▄▅▆▇█]{3}/u);
    expect(wide).toMatch(/^ubiblk top: 1 disk, read \d.*IOPS; every 0\.2 s; q quits\n/);
    expect(wide).toMatch(/DISK +READ\/S +WRITE\/S +IOPS +DEPTH +READ P99 +WRITE P99 +FAILED/);
    expect(wide).toMatch(/\n {2}connected, up \d+ s/);
    expect(wide).toMatch(/\n {2}read +p50 \d.* +p99 .* p99\.9 /);
    expect(wide).toMatch(/\n {2}flush +p50 /);
    expect(wide).toMatch(/\n {2}queue 1: read .*\/s, write .*\/s, .* IOPS, \d+ in flight/);
    expect(terminal.screen(true)).toContain('\x1b[');
    terminal.resize(56, 20);
    const narrow = await terminal.shows(/^DISK +READ\/S +WRITE\/S +IOPS/m);
    expect(narrow).not.toContain('HISTORY');
    for (const line of narrow.split('\n')) expect(Bun.stringWidth(line)).toBeLessThanOrEqual(56);
    terminal.keys('q');
    const after = await terminal.shows(/ended 0/);
    expect(after).not.toContain('READ/S');
    await server.user.destroy(false);
    await bed.stop(server);
  },
  90_000,
);

testWith(
  'without colour; ctrl-C ends it; the name ubitop',
  needs,
  async () => {
    await using bed = new Bed();
    const server = await busyServer(bed, 'a');
    symlinkSync(binary, bed.path('ubitop'));
    const argv = [bed.path('ubitop'), '--socket', server.rpc];
    using terminal = new Terminal(bed, argv, 100, 24, { NO_COLOR: '1' });
    await terminal.shows(/MiB/);
    // biome-ignore lint/suspicious/noControlCharactersInRegex: colours are what is looked for
    expect(terminal.screen(true)).not.toMatch(/\x1b\[(1|2|31)m/);
    terminal.keys('C-c');
    await terminal.shows(/ended 0/);
    await server.user.destroy(false);
    await bed.stop(server);
  },
  90_000,
);

testWith(
  'a signal gives the terminal back as well; one that can not move its cursor gets lines',
  needs,
  async () => {
    await using bed = new Bed();
    const server = await busyServer(bed, 'a');
    const argv = [binary, 'top', '--interval', '0.2', '--socket', server.rpc];
    using terminal = new Terminal(bed, argv, 100, 24);
    await terminal.shows(/READ\/S/);
    expect(terminal.state).toBe('0 1');
    process.kill(terminal.pid, 'SIGTERM');
    await terminal.shows(/ended 0/);
    expect(terminal.state).toBe('1 0');
    // Typed characters are echoed again.
    terminal.keys('echoed');
    await terminal.shows(/echoed/);
    using dumb = new Terminal(bed, ['env', 'TERM=dumb', ...argv], 120, 24);
    await dumb.shows(/a\.sock: read [\s\S]*a\.sock: read /);
    expect(dumb.state).toBe('1 0');
    await server.user.destroy(false);
    await bed.stop(server);
  },
  90_000,
);

testWith(
  'several disks, one of which fills, and one that is killed and starts again',
  needs,
  async () => {
    await using bed = new Bed();
    const settings = { autofetch: true, autofetch_max_mib_per_s: 2 };
    const sizes = { shift: 9, sizeBytes: 16 * MIB, imageBytes: 16 * MIB };
    const lazy = await lazyDisk(bed, { ...sizes, settings });
    const filling = await bed.serve(lazy.disk, lazy.settings);
    const other = await busyServer(bed, 'b');
    const argv = [binary, 'top', '--interval', '0.2', '--socket', lazy.rpc, other.rpc];
    using terminal = new Terminal(bed, argv, 140, 40);
    const first = await terminal.shows(/stripes \[#+-+\] \d+ %, \d+ of 64, .* left/);
    expect(first).toContain('2 of 2 disks');
    await other.user.destroy(false);
    await bed.crash(other);
    await terminal.shows(/b\.sock +nobody listens on the socket/);
    const again = await bed.start(other.config, other.socket);
    await terminal.shows(/restarted once|up 0 s|up 1 s/);
    await terminal.shows(/2 of 2 disks/);
    terminal.keys('q');
    await terminal.shows(/ended 0/);
    await bed.stop(again);
    await bed.stop(filling);
  },
  90_000,
);

test('lines in scripts, one look with --once, JSON, and what is wrong', async () => {
  await using bed = new Bed();
  const server = await busyServer(bed, 'a');
  const top = [binary, 'top', '--interval', '0.2'];
  const one = await bed.run([...top, '--once', '--socket', server.rpc]);
  expect(one.stdout.text).toMatch(
    /^\d\d:\d\d:\d\d \S+a\.sock: read .*\/s, write .*\/s, .* IOPS, .*p99/,
  );
  expect(one.stdout.text.split('\n').length).toBe(2);
  const json = await bed.run([...top, '--once', '--json', server.rpc]);
  const { disks } = JSON.parse(json.stdout.text);
  expect(disks[0].rates.bytes_read).toBeGreaterThan(0);
  expect(disks[0].latency_us.read.p99).toBeGreaterThanOrEqual(disks[0].latency_us.read.p50);
  const live = bed.spawn([...top, '--json', '--socket', server.rpc]);
  await live.said(/(\{"at".*\n){3}/, 10_000);
  live.signal('SIGTERM');
  expect(await live.exit(5000)).toBe(0);
  expect(live.stdout.text).not.toContain('\x1b');
  const nowhere = bed.path('none.sock');
  const none = await bed.run([...top, '--once', '--socket', nowhere], { expect: 1 });
  expect(none.stderr.text).toContain(`there is no socket '${nowhere}'`);
  expect(none.stdout.text).toBe('');
  const both = await bed.run([...top, '--once', server.rpc, nowhere], { expect: 1 });
  expect(both.stdout.text).toContain(`none.sock: there is no socket`);
  expect((await bed.run([binary, 'top'], { expect: 2 })).stderr.text).toContain('is required');
  const wrong = await bed.run([binary, 'top', '--interval', '0', 'x'], { expect: 2 });
  expect(wrong.stderr.text).toContain('--interval must be');
  await server.user.destroy(false);
  await bed.stop(server);
}, 60_000);

test('a server that hangs keeps nobody from seeing the others', async () => {
  await using bed = new Bed();
  const [well, ill] = [bed.path('a.sock'), bed.path('b.sock')];
  const server = await bed.serve(bed.disk(), { rpc_socket_path: well });
  const hanging = await bed.serve(bed.disk(), { rpc_socket_path: ill });
  const top = bed.spawn([binary, 'top', '--json', '--interval', '0.1', well, ill]);
  await top.said(/(\{"at".*\n){2}/, 10_000);
  hanging.child.signal('SIGSTOP');
  await top.said(/did not answer within 2 s/, 20_000);
  hanging.child.signal('SIGCONT');
  const looks = top.stdout.text.split('\n').filter((line) => line.endsWith('}'));
  const disks = looks.map((line) => JSON.parse(line).disks);
  const late = disks.filter(
    ([a, b], i) =>
      i > 0 && a.uptime_s > disks[i - 1][0].uptime_s && b.uptime_s === disks[i - 1][1].uptime_s,
  );
  expect(late.length).toBeGreaterThan(1);
  expect(late[0][1].problem).toBeNull();
  top.signal('SIGTERM');
  expect(await top.exit(5000)).toBe(0);
  await bed.stop(server);
  await bed.stop(hanging);
}, 60_000);
