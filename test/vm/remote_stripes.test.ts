/**
 * A disk that fills itself from a server in another network namespace, under load, while the kernel
 * makes the network between them bad, and signals the server.
 */

import { expect } from 'bun:test';
import { binary, client } from '../e2e/processes.ts';
import { Bed, need, quote, type Settings, seed, testWith } from '../e2e/support.ts';

const minutes = 60_000;
const MIB = 1 << 20;
/** Of the disk, for each fault: what is still to be fetched is under load while it lasts. */
const PART = 5 * MIB;
const FAULTS = ['latency', 'resets', 'paused', 'killed', 'unplugged'] as const;
const sizeBytes = FAULTS.length * PART + 77 * 512;
const psk: Settings = {
  psk_identity: 'hosts',
  psk_secret: Buffer.alloc(32, 9).toString('base64'),
};

testWith(
  'every byte is right and guests go on through latency, loss, resets, and servers and links that go away',
  [need.program('tc'), need.program('ip'), need.program('ss')],
  async () => {
    await using bed = new Bed();
    const image = bed.disk({ sizeBytes });
    bed.fill(image, sizeBytes, seed);
    const address = '10.7.0.1:4555';
    const map: Settings = { metadata_path: '/tmp/image.meta', track_written: false };
    bed.config({ path: image, ...map }, 'image.yaml');
    bed.config({ address, ...psk }, 'listen.yaml');
    const source = {
      source: 'remote',
      address,
      connect_timeout_ms: 3000,
      operation_attempt_timeout_ms: 2000,
      ...psk,
    };
    const copy = {
      path: '/tmp/copy.raw',
      socket: '/tmp/vhost.sock',
      num_queues: 2,
      queue_size: 256,
      metadata_path: '/tmp/copy.meta',
      rpc_socket_path: '/tmp/rpc.sock',
      copy_on_read: true,
      stripe_source: source as unknown as string,
    };
    bed.config(copy, 'copy.yaml');
    const guest = bed.guest(
      { seconds: 240 },
      `set -e
ubiblk=${quote(binary)}
modprobe -a veth sch_netem
modprobe -q tcp_diag || true
ip netns add source
ip netns add copy
ip -n source link add name va type veth peer name vb netns copy
for end in source,va,1 copy,vb,2; do
  IFS=, read -r ns link number <<< "$end"
  ip -n "$ns" addr add "10.7.0.$number/24" dev "$link"
  ip -n "$ns" link set "$link" up
  tc -n "$ns" qdisc add dev "$link" root netem delay 50ms loss 1%
done

begin_server() {
  # What the one before has said, this one hasn't.
  rm -f server.log
  ip netns exec source $ubiblk serve stripes --config image.yaml --listen-config listen.yaml 2> server.log &
  server=$!
  until grep -qs ' at 10.7.0.1' server.log; do kill -0 $server; sleep 0.1; done
}
# The load of a fault; it is under way when this returns.
begin_load() {
  part=$1
  rm -f load.log
  ${client('vhost-check')} /tmp/vhost.sock queues=2 depth=8 ops=250 max=65536 zero=1 progress=1 timeout=100 \\
    span=${PART} offset=$((part * ${PART})) state=/tmp/state$part image=image.raw seed=$((${seed % 1e6} + part)) > load.log &
  load=$!
  until [[ -s load.log ]]; do kill -0 $load; sleep 0.1; done
}
times() { grep -c "$1" client.log || true; }
# Until the client has noticed that the server is away, and has asked in vain some times. The load outlives it.
until_away() {
  until (($(times 'is away') > $1)); do kill -0 $load; sleep 0.1; done
  until $ubiblk rpc /tmp/rpc.sock status --json | grep -qE '"attempts":([5-9]|[0-9]{2})'; do
    kill -0 $load
    sleep 0.1
  done
  kill -0 $load
}
end_load() { wait $load; echo "$1: right"; }

ln -sf ${quote(image)} image.raw
truncate -s ${sizeBytes} /tmp/copy.raw
$ubiblk metadata init --config image.yaml -s 7
begin_server
ip netns exec copy $ubiblk metadata init --config copy.yaml -s 7
ip netns exec copy $ubiblk serve vhost --config copy.yaml 2> client.log &
client=$!
until grep -q 'listening on' client.log; do kill -0 $client; sleep 0.1; done

begin_load 0
end_load latency

begin_load 1
resets=0
while kill -0 $load 2> /dev/null && ((resets < 40)); do
  resets=$((resets + $(ip netns exec copy ss -HKt state established dst 10.7.0.1 | wc -l)))
  sleep 0.3
done
echo "$resets resets"
end_load resets

before=$(times 'is away')
begin_load 2
kill -STOP $server
until_away $before
kill -CONT $server
end_load paused

before=$(times 'is away')
begin_load 3
kill -9 $server
wait $server || true
until_away $before
begin_server
end_load killed

before=$(times 'is away')
begin_load 4
ip -n source link set va down
until_away $before
ip -n source link set va up
end_load unplugged

# All of the parts once more, by the same client process.
for part in 0 1 2 3 4; do
  ${client('vhost-check')} /tmp/vhost.sock ops=0 zero=1 timeout=100 span=${PART} offset=$((part * ${PART})) \\
    state=/tmp/state$part image=image.raw
done
kill -0 $client
kill $client
wait $client
kill $server
wait $server
grep -e 'is away' -e 'is back' client.log
echo done`,
    );
    await bed.guestEnd(guest);
    const { text } = guest.stdout;
    for (const fault of FAULTS) expect(text).toContain(`${fault}: right`);
    expect(Number(text.match(/(\d+) resets/)?.[1])).toBeGreaterThan(0);
    expect(text.match(/is back/g)?.length).toBeGreaterThanOrEqual(3);
    expect(text).toContain('done');
  },
  6 * minutes,
);
