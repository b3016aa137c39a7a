/** What the server answers to options, right ones and wrong ones. */
import { expect, test } from 'bun:test';
import { Opt, Rep } from '../../src/device/nbd/protocol.ts';
import {
  ALLOCATION,
  Negotiation,
  STRIPES,
  type TlsState,
} from '../../src/frontend/nbd/negotiation.ts';
import { Random, seed } from '../random.ts';
import { goData, someExport } from './support.ts';

console.log(`seed ${seed} (UBIBLK_TEST_SEED=${seed} repeats this run)`);

function negotiation(tls: TlsState = 'none', more = {}): Negotiation {
  const made = new Negotiation({ ...someExport, name: 'disk', ...more }, tls);
  made.setFlags(3);
  return made;
}

/** Types of the replies in an answer. */
function types(answer: Uint8Array): number[] {
  const bytes = Buffer.from(answer);
  const found: number[] = [];
  for (let at = 0; at < bytes.length; at += 20 + bytes.readUInt32BE(at + 16)) {
    expect(bytes.readBigUInt64BE(at)).toBe(0x3e889045565a9n);
    found.push(bytes.readUInt32BE(at + 12));
  }
  return found;
}

function contextData(name: string, queries: string[]): Buffer {
  const texts = [name, ...queries].map((text) => {
    const bytes = Buffer.from(text);
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    return Buffer.concat([length, bytes]);
  });
  const count = Buffer.alloc(4);
  count.writeUInt32BE(queries.length);
  return Buffer.concat([texts[0], count, ...texts.slice(1)]);
}

test('both names are the export, any other is unknown', () => {
  for (const name of ['', 'disk']) {
    const talk = negotiation();
    expect(types(talk.answer(Opt.GO, goData(name)))).toEqual([Rep.INFO, Rep.INFO, Rep.ACK]);
    expect(talk.next).toBe('requests');
  }
  const talk = negotiation();
  expect(types(talk.answer(Opt.GO, goData('other')))).toEqual([Rep.ERR_UNKNOWN]);
  expect(talk.next).toBe('options');
});

test('contexts need structured replies, and count for their export alone', () => {
  const talk = negotiation('none', { hasStripes: true });
  const data = contextData('disk', ['base:allocation', 'ubiblk:stripes', 'x:y']);
  expect(types(talk.answer(Opt.SET_META_CONTEXT, data))).toEqual([Rep.ERR_INVALID]);
  expect(types(talk.answer(Opt.STRUCTURED_REPLY, Buffer.alloc(0)))).toEqual([Rep.ACK]);
  expect(types(talk.answer(Opt.SET_META_CONTEXT, data))).toEqual([
    Rep.META_CONTEXT,
    Rep.META_CONTEXT,
    Rep.ACK,
  ]);
  expect(talk.contexts).toBe(ALLOCATION | STRIPES);
  talk.answer(Opt.GO, goData(''));
  expect(talk.contexts).toBe(0);
});

test('contexts are listed by name, by namespace, and all', () => {
  const talk = negotiation('none', { hasStripes: true });
  const listed = (queries: string[]) =>
    types(talk.answer(Opt.LIST_META_CONTEXT, contextData('', queries))).length - 1;
  expect(listed([])).toBe(2);
  expect(listed(['base:'])).toBe(1);
  expect(listed(['ubiblk:stripes'])).toBe(1);
  expect(listed(['base'])).toBe(0);
});

test('nothing is agreed on before TLS where it is required', () => {
  const talk = negotiation('required');
  for (const option of [Opt.LIST, Opt.INFO, Opt.GO, Opt.STRUCTURED_REPLY, 99]) {
    expect(types(talk.answer(option, goData()))).toEqual([Rep.ERR_TLS_REQD]);
  }
  expect(types(talk.answer(Opt.STARTTLS, Buffer.alloc(0)))).toEqual([Rep.ACK]);
  expect(talk.next).toBe('tls');
  const old = negotiation('required');
  expect(old.answer(Opt.EXPORT_NAME, Buffer.alloc(0)).length).toBe(0);
  expect(old.next).toBe('end');
});

test('unknown, malformed and oversized options get their errors', () => {
  const talk = negotiation();
  expect(types(talk.answer(77, Buffer.alloc(3)))).toEqual([Rep.ERR_UNSUP]);
  expect(types(talk.answer(Opt.STARTTLS, Buffer.alloc(0)))).toEqual([Rep.ERR_POLICY]);
  expect(types(talk.answer(Opt.LIST, Buffer.alloc(1)))).toEqual([Rep.ERR_INVALID]);
  expect(types(talk.answer(Opt.GO, goData().subarray(0, 5)))).toEqual([Rep.ERR_INVALID]);
  expect(types(talk.answer(Opt.GO, null))).toEqual([Rep.ERR_TOO_BIG]);
  expect(types(talk.answer(Opt.GO, goData('\xff\0')))).toEqual([Rep.ERR_INVALID]);
});

test('random options are answered, each by whole replies', () => {
  const random = new Random(seed);
  for (let round = 0; round < 5000; round++) {
    const talk = negotiation(random.pick(['none', 'required', 'done']), { hasStripes: true });
    for (let i = 0; i < 5 && talk.next === 'options'; i++) {
      const data = Buffer.from(contextData('disk', ['base:allocation']));
      for (let n = random.below(4); n > 0; n--) data[random.below(data.length)] = random.below(256);
      const cut = data.subarray(0, random.chance(3) ? random.below(data.length) : data.length);
      const option = random.chance(4) ? random.next() : random.below(12);
      const answer = talk.answer(option, cut);
      if (option !== Opt.EXPORT_NAME) expect(types(answer).length).toBeGreaterThan(0);
    }
  }
});
