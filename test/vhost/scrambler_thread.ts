/** A guest's other processor: changes words of shared memory for as long as it is let. */
import { windowOver } from '../../ffi/memory.ts';
import { Random } from '../random.ts';

export interface Scramble {
  /** Runs of 32-bit words at addresses of this process, and values that may stand in them. */
  places: { address: number; words: number; values: number[] }[];
  /** Its first word is 0 until the scrambling is to end; the second counts the changes. */
  control: SharedArrayBuffer;
  seed: number;
}

declare const self: Worker;

self.onmessage = ({ data }: MessageEvent<Scramble>) => {
  const control = new Int32Array(data.control);
  const random = new Random(data.seed);
  const places = data.places.map(({ address, words, values }) => ({
    words: new Uint32Array(windowOver(address, words * 4)),
    values,
  }));
  while (Atomics.load(control, 0) === 0) {
    for (let i = 0; i < 1000; i++) {
      const { words, values } = random.pick(places);
      Atomics.store(words, random.below(words.length), random.pick(values));
    }
    Atomics.add(control, 1, 1);
    Atomics.notify(control, 1);
  }
  self.postMessage('ended');
};
