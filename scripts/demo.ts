/**
 * The demo behind `npm start`: serves a sparse file as a disk, lets `ubiblk probe` use it, and says
 * what to type next. Ctrl-C ends the server and removes everything.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

const DISK_BYTES = 256 * 1024 * 1024;
const executable = join(process.cwd(), 'dist/ubiblk');

/** Not console.error, which colours what it writes to a terminal. */
function say(line: string): void {
  process.stderr.write(`${line}\n`);
}

const words = process.argv.slice(2);
const unknown = words.find((word) => word !== '--once');
if (unknown !== undefined) {
  say(`start: unknown argument '${unknown}': only --once is known`);
  process.exit(2);
}
const stays =
  process.stdin.isTTY && process.stdout.isTTY && !process.env.CI && !words.includes('--once');

/**
 * Starts the server and waits for it to say that it listens. It gets a process group of its own: a
 * Ctrl-C reaches the demo alone, which then ends the server.
 */
async function startServer(config: string, socket: string): Promise<ChildProcess> {
  const child = spawn(executable, ['serve', 'vhost', '--config', config], {
    detached: true,
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  const lines = createInterface({ input: child.stderr as NodeJS.ReadableStream });
  const listening = new Promise<void>((resolve, reject) => {
    lines.on('line', (line) => {
      say(`  server: ${line}`);
      if (line.includes(`listening on '${socket}'`)) resolve();
    });
    child.on('error', reject);
    child.on('close', (status, signal) => {
      reject(
        new Error(`the server ended with ${signal ?? `status ${status}`}: its words are above`),
      );
    });
  });
  await listening;
  return child;
}

/** @returns the server's exit status */
async function stopServer(server: ChildProcess): Promise<number> {
  if (server.exitCode === null && server.signalCode === null) {
    const ended = once(server, 'close');
    server.kill('SIGTERM');
    await ended;
  }
  return server.exitCode ?? 1;
}

function printNextSteps(folder: string, socket: string, config: string): void {
  console.log(`
The disk is served until you press Ctrl-C. What to type next, in another terminal:

  The same again, deeper and longer:
    ${executable} probe --socket ${socket} --write --depth 128 --seconds 10

  A guest of QEMU (add its boot disk; in the guest the demo disk is /dev/vda or the next):
    qemu-system-x86_64 -machine q35,accel=kvm -cpu host -smp 2 -m 1G -nographic \\
      -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem \\
      -chardev socket,id=disk,path=${socket} \\
      -device vhost-user-blk-pci,chardev=disk,num-queues=2

  A guest of Cloud Hypervisor:
    cloud-hypervisor --memory size=1G,shared=on --cpus boot=2 --kernel vmlinux \\
      --disk path=boot.raw vhost_user=true,socket=${socket},num_queues=2

  Your own server: copy ${config} and change its paths.

The demo's files are in ${folder} and will be removed.`);
}

async function main(): Promise<number> {
  const folder = mkdtempSync(join(tmpdir(), 'ubiblk-demo-'));
  const [disk, config, socket] = ['disk.raw', 'demo.yaml', 'vhost.sock'].map((name) =>
    join(folder, name),
  );
  const interrupted = new Promise<void>((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
      process.on(signal, () => resolve());
  });
  let server: ChildProcess | undefined;
  let status = 0;
  try {
    writeFileSync(disk, '');
    truncateSync(disk, DISK_BYTES);
    writeFileSync(
      config,
      `path: ${disk}\nsocket: ${socket}\nnum_queues: 2\nqueue_size: 256\ndevice_id: ubiblk-demo\n`,
    );
    console.log(`$ dist/ubiblk serve vhost --config ${config}`);
    server = await startServer(config, socket);

    console.log(`\n$ dist/ubiblk probe --socket ${socket} --write`);
    const probe = spawn(executable, ['probe', '--socket', socket, '--write'], {
      stdio: 'inherit',
    });
    const probed = once(probe, 'close').then(([code]) => code as number | null);
    const code = await Promise.race([probed, interrupted]);
    if (typeof code !== 'number') {
      probe.kill();
    } else if (code !== 0) {
      say('start: the probe failed: its words are above');
      status = 1;
    } else if (stays) {
      printNextSteps(folder, socket, config);
      const died = once(server, 'close').then(() => true);
      if (await Promise.race([died, interrupted])) {
        say('start: the server ended by itself: its words are above');
        status = 1;
      }
      console.log('');
    }
  } catch (error) {
    say(`start: ${(error as Error).message}`);
    status = 1;
  }
  if (server !== undefined && (await stopServer(server)) !== 0 && status === 0) {
    say('start: the server did not end cleanly: its words are above');
    status = 1;
  }
  rmSync(folder, { recursive: true, force: true });
  return status;
}

process.exit(await main());
