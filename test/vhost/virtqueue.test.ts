/** The device's side of a ring whose driver lies. */
import { afterEach, expect, test } from 'bun:test';
import { Virtqueue, VirtqueueError } from '../../src/frontend/vhost/virtqueue.ts';
import { FakeGuest, type GuestOptions } from './fake_guest.ts';

let guest: FakeGuest;

function makeGuest(options: GuestOptions = {}): FakeGuest {
  guest = new FakeGuest(options);
  return guest;
}

afterEach(() => {
  expect(guest.memory.canariesStand).toBe(true);
  guest.free();
});

function setAvailableIdx(value: number): void {
  guest.driver.available[1] = value;
}

test('chains come in the order they were made available, each once', () => {
  const { queue, driver } = makeGuest();
  expect(queue.pop()).toBe(-1);
  for (const head of [3, 0, 15]) driver.add(head);
  expect(queue.pop()).toBe(-1);
  driver.publish();
  expect([queue.pop(), queue.pop(), queue.pop(), queue.pop()]).toEqual([3, 0, 15, -1]);
});

test('an available index as far ahead as the ring is long is the most there can be', () => {
  const { queue } = makeGuest({ size: 16 });
  setAvailableIdx(16);
  expect(queue.pop()).toBe(0);
});

for (const ahead of [17, 18, 0x7fff, 0xffff]) {
  test(`an available index ${ahead} ahead breaks a ring of 16`, () => {
    const { queue } = makeGuest({ size: 16 });
    setAvailableIdx(ahead);
    expect(() => queue.pop()).toThrow(VirtqueueError);
    expect(() => queue.hasAvailable).toThrow(VirtqueueError);
    expect(() => queue.startNotifications()).toThrow(VirtqueueError);
  });
}

test('an available index that goes back breaks the ring', () => {
  const { queue, driver } = makeGuest();
  driver.add(1);
  driver.add(2);
  driver.publish();
  queue.pop();
  queue.pop();
  setAvailableIdx(1);
  expect(() => queue.pop()).toThrow(VirtqueueError);
});

for (const head of [16, 17, 0x8000, 0xffff]) {
  test(`head ${head} breaks a ring of 16`, () => {
    const { queue, driver } = makeGuest({ size: 16 });
    driver.add(head);
    driver.publish();
    expect(() => queue.pop()).toThrow(`names descriptor ${head} of 16`);
  });
}

test('indexes go round at 65536, with used elements in their places', () => {
  const { queue, driver, layout } = makeGuest({ size: 4 });
  for (let i = 0; i < 70_000; i++) {
    driver.add(i % 4);
    driver.publish();
    expect(queue.pop()).toBe(i % 4);
    queue.push(i % 4, i);
    queue.publish();
    expect(driver.takeUsed()).toBe(i % 4);
    expect(driver.usedLength).toBe(i);
  }
  expect(queue.nextAvailable).toBe(70_000 % 65_536);
  // A ring that is taken over goes on where the used index says.
  expect(new Virtqueue(layout).nextUsed).toBe(70_000 % 65_536);
});

test('a ring of one descriptor works', () => {
  const { queue, driver } = makeGuest({ size: 1 });
  for (let i = 0; i < 3; i++) {
    driver.add(0);
    driver.publish();
    expect(queue.pop()).toBe(0);
    expect(queue.pop()).toBe(-1);
    queue.push(0, 1);
    queue.publish();
    expect(driver.takeUsed()).toBe(0);
  }
});

test('what is added is seen only once it is published', () => {
  const { queue, driver } = makeGuest();
  queue.push(5, 513);
  expect(driver.takeUsed()).toBe(-1);
  queue.publish();
  expect(driver.takeUsed()).toBe(5);
  expect(driver.usedLength).toBe(513);
});

test('the driver is interrupted when its used_event is passed, at every wrap', () => {
  const { queue, driver } = makeGuest({ size: 4 });
  let seen = 0;
  for (let i = 0; i < 70_000; i += 2) {
    // It asks to be told of the second element from here.
    driver.available[2 + 4] = (i + 1) & 0xffff;
    queue.push(0, 0);
    queue.publish();
    if (queue.needsInterrupt()) throw new Error(`too early at ${i}`);
    queue.push(1, 0);
    queue.publish();
    if (queue.needsInterrupt()) seen++;
    if (queue.needsInterrupt()) throw new Error(`twice at ${i}`);
  }
  expect(seen).toBe(35_000);
});

test('a batch that passes used_event interrupts once', () => {
  const { queue, driver } = makeGuest({ size: 16 });
  driver.available[2 + 16] = 3;
  for (let i = 0; i < 8; i++) queue.push(i, 0);
  queue.publish();
  expect(queue.needsInterrupt()).toBe(true);
  expect(queue.needsInterrupt()).toBe(false);
});

test('without event indexes the flags decide on interrupts and notifications', () => {
  const { queue, driver } = makeGuest({ eventIdx: false });
  queue.push(0, 0);
  queue.publish();
  expect(queue.needsInterrupt()).toBe(true);
  driver.available[0] = 1;
  queue.push(1, 0);
  queue.publish();
  expect(queue.needsInterrupt()).toBe(false);

  driver.add(0);
  expect(driver.publish()).toBe(true);
  queue.stopNotifications();
  driver.add(1);
  expect(driver.publish()).toBe(false);
  expect(queue.startNotifications()).toBe(true);
  queue.pop();
  queue.pop();
  expect(queue.startNotifications()).toBe(false);
  driver.add(2);
  expect(driver.publish()).toBe(true);
});

test('with event indexes the driver notifies only of what comes after startNotifications', () => {
  const { queue, driver } = makeGuest({ eventIdx: true });
  expect(queue.startNotifications()).toBe(false);
  driver.add(0);
  expect(driver.publish()).toBe(true);
  queue.pop();
  queue.stopNotifications();
  driver.add(1);
  expect(driver.publish()).toBe(false);
  expect(queue.startNotifications()).toBe(true);
  queue.pop();
  expect(queue.startNotifications()).toBe(false);
  driver.add(2);
  expect(driver.publish()).toBe(true);
});
