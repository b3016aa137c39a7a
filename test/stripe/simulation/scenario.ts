import type { JournalOptions } from '../../../src/stripe/journal.ts';
import { defaultJournalOptions } from '../../../src/stripe/journal.ts';
import type { Dice } from './dice.ts';
import { SECTOR } from './values.ts';

/** How a life of the program ends: its power is cut, it is killed, it is told to stop. */
export type Ending = 'power cut' | 'kill' | 'stop';

export interface Life {
  ending: Ending;
  /** Events until then. */
  steps: number;
  /** Requests of the guest. */
  requests: number;
}

/** One fault in so many operations; 0: none. */
export interface FaultRates {
  dataRead: number;
  dataWrite: number;
  dataSync: number;
  metadataWrite: number;
  metadataSync: number;
  image: number;
  source: number;
}

export interface Scenario {
  version: 1 | 2;
  shift: number;
  stripes: number;
  diskSectors: number;
  unitBytes: number;
  /** 0: there is no source. */
  sourceBytes: number;
  /** Stripes that nobody waits for and that are on their way at a time. */
  mostUnrecorded: number;
  /** Of each stripe: whether the source has it, and whether it knows that it is zeroes. */
  hasSource: boolean[];
  zeroStripes: boolean[];
  /** Which are told of, and put onto the disk, in no time. */
  instantZeroes: boolean;
  /** Unfetched stripes are read from the image. */
  image: boolean;
  /** And become local then. */
  copyOnRead: boolean;
  /** The source may put stripes onto the disk by itself. */
  copies: boolean;
  /** Stripes that queues ask for at a time to zero them, for so many requests. */
  zeroing: { stripes: number; requests: number };
  trackWritten: boolean;
  autofetch: boolean;
  autofetchBytesPerSecond: number;
  buffers: number;
  journal: JournalOptions;
  queues: number;
  depth: number;
  /** Requests in flight may touch the same sectors. */
  overlaps: boolean;
  /** Of reads, writes, flushes, discards, write-zeroes among the guest's requests. */
  weights: number[];
  thinkMs: number;
  sourceMs: number;
  /** The source goes on with what it does when it is told to stop. */
  deaf: boolean;
  diskMs: number;
  messageMs: number;
  /** Queues give up what waits, once in so many requests: they fail it, or begin it again; 0: never. */
  pauses: number;
  /** Queues look for answers without being woken, too. */
  eager: boolean;
  faults: FaultRates;
  /** Outages of the source, in milliseconds from the beginning. */
  outages: { fromMs: number; toMs: number }[];
  lives: Life[];
  /** In the last life, the metadata file fails from some moment on, for good. */
  metadataDies: boolean;
}

const NO_FAULTS: FaultRates = {
  dataRead: 0,
  dataWrite: 0,
  dataSync: 0,
  metadataWrite: 0,
  metadataSync: 0,
  image: 0,
  source: 0,
};

/** Many different worlds: in each, some things are switched off and others happen all the time. */
export function makeScenario(dice: Dice): Scenario {
  const shift = dice.below(4);
  const perStripe = 1 << shift;
  // Some disks have more stripes than a queue's ring has room for answers.
  const stripes = shift === 0 && dice.chance(30) ? dice.between(1100, 1300) : dice.between(1, 20);
  const diskSectors = (stripes - 1) * perStripe + dice.between(1, perStripe);
  const sourceBytes = sourceSize(dice, diskSectors * SECTOR);
  const source = sourceBytes > 0;
  const sparse = dice.chance(3);
  const zeroes = dice.pick([0, 0, 1, 3, 10]);
  const hasSource = Array.from(
    { length: stripes },
    (_, i) => i * perStripe * SECTOR < sourceBytes && !(sparse && dice.chance(4)),
  );
  const trackWritten = dice.chance(2) || !source;
  const journal = journalOptions(dice);
  return {
    version: dice.pick([1, 2]),
    shift,
    stripes,
    diskSectors,
    unitBytes: dice.pick([512, 512, 4096]),
    sourceBytes,
    hasSource,
    zeroStripes: hasSource.map((has) => has && zeroes > 0 && dice.chance(zeroes)),
    instantZeroes: dice.chance(2),
    // Only a raw image can be read so, and it has all of its stripes.
    image: source && !sparse && dice.chance(3),
    copyOnRead: dice.chance(2),
    copies: dice.chance(4),
    zeroing: { stripes: dice.pick([1, 2, 5, 256]), requests: dice.between(1, 3) },
    trackWritten,
    autofetch: source && dice.chance(2),
    autofetchBytesPerSecond: dice.chance(4) ? dice.pick([20_000, 1_000_000]) : 0,
    buffers: dice.between(1, 4),
    journal,
    mostUnrecorded: journal.patienceChanges * dice.pick([1, 2, 20]),
    queues: dice.between(1, 3),
    depth: dice.pick([1, 2, 4, 8]),
    overlaps: dice.chance(3),
    weights: [6, 8, dice.pick([0, 1, 4]), dice.pick([0, 2]), dice.pick([0, 2])],
    thinkMs: dice.pick([0.05, 1, 1, 10, 200]),
    sourceMs: dice.pick([0.1, 2, 20, 200]),
    deaf: dice.chance(2),
    diskMs: dice.pick([0.05, 1, 1, 10]),
    messageMs: dice.pick([0.01, 0.1, 1, 10]),
    pauses: dice.pick([0, 0, 5, 20]),
    eager: dice.chance(2),
    ...troubles(dice),
  };
}

function journalOptions(dice: Dice): JournalOptions {
  if (dice.chance(2)) return defaultJournalOptions;
  return {
    // With the last one, whoever waits and isn't known to waits too long.
    patienceMs: dice.pick([0, 5, 1000, 1_000_000]),
    patienceChanges: dice.between(1, 8),
    groupChanges: dice.between(1, 8),
    turnChanges: dice.between(1, 4),
    attempts: 3,
  };
}

function sourceSize(dice: Dice, diskBytes: number): number {
  const odd = dice.chance(3) ? dice.between(1, SECTOR - 1) : 0;
  const sectors = diskBytes / SECTOR;
  switch (dice.below(8)) {
    case 0:
      return 0;
    case 1:
    case 2:
    case 3:
      return diskBytes - odd;
    default:
      return dice.between(1, sectors) * SECTOR - odd;
  }
}

function troubles(dice: Dice): Pick<Scenario, 'faults' | 'outages' | 'lives' | 'metadataDies'> {
  const faults = { ...NO_FAULTS };
  if (dice.chance(2)) {
    for (const name of Object.keys(faults) as (keyof FaultRates)[]) {
      if (dice.chance(2)) faults[name] = dice.pick([3, 10, 30]);
    }
  }
  const outages: Scenario['outages'] = [];
  if (dice.chance(4)) {
    for (let i = dice.between(1, 3); i > 0; i--) {
      const fromMs = dice.below(500);
      outages.push({ fromMs, toMs: fromMs + dice.pick([10, 300, 10_000]) });
    }
  }
  const lives = Array.from({ length: dice.below(4) }, () => {
    const requests = dice.between(1, 40);
    return {
      ending: dice.pick<Ending>(['power cut', 'power cut', 'kill', 'stop', 'stop']),
      steps: dice.between(1, 20 + requests * 10),
      requests,
    };
  });
  lives.push({ ending: 'stop', steps: 0, requests: dice.between(1, 40) });
  return { faults, outages, lives, metadataDies: dice.chance(12) };
}
