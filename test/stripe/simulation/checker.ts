/**
 * What must be true between any two events, whatever a power cut would leave: every version of every
 * unsynced sector is looked at, of the disk and of the metadata file alike.
 */
import { MetadataLayout } from '../../../src/stripe/metadata_layout.ts';
import { FETCHED, HAS_SOURCE, WRITTEN } from '../../../src/stripe/shared_state.ts';
import type { Model } from './model.ts';
import type { Scenario } from './scenario.ts';
import {
  isGuestData,
  junkValue,
  SECTOR,
  sourceValue,
  tailValue,
  describe as told,
  ZERO,
} from './values.ts';
import type { VolatileSectors } from './volatile_sectors.ts';
import type { World } from './world.ts';

const HEADERS_PER_SECTOR = { 1: 512, 2: 508 };

/** What the source holds for a sector of a stripe that it has. */
export function sourceSector(scenario: Scenario, sector: number): number {
  if (scenario.zeroStripes[sector >> scenario.shift]) return ZERO;
  const bytes = scenario.sourceBytes - sector * SECTOR;
  if (bytes >= SECTOR) return sourceValue(sector);
  return bytes > 0 ? tailValue(bytes) : ZERO;
}

/** What the guest finds in a sector before anybody wrote to it. */
export function firstSector(scenario: Scenario, sector: number): number {
  const has = scenario.hasSource[sector >> scenario.shift];
  return has ? sourceSector(scenario, sector) : junkValue(sector);
}

export class Checker {
  readonly layout: MetadataLayout;
  /** Stripes that a guest may have written to: that must never be forgotten. */
  private readonly written: Uint8Array;
  /** Stripes that a guest has begun to write to: no other is recorded so. */
  private readonly touched: Uint8Array;
  private readonly stale: Uint8Array;
  private anyStale = true;
  /** What the program showed of stripes when they were looked at. */
  private readonly shown: Uint8Array;

  constructor(
    private readonly world: World,
    private readonly disk: () => VolatileSectors<number>,
    private readonly metadata: () => VolatileSectors<Uint8Array>,
    private readonly model: () => Model,
  ) {
    const { version, shift, stripes } = world.scenario;
    this.layout = new MetadataLayout(version, shift, stripes);
    this.written = new Uint8Array(stripes);
    this.touched = new Uint8Array(stripes);
    this.stale = new Uint8Array(stripes).fill(1);
    this.shown = new Uint8Array(stripes);
  }

  /** Something has changed in a sector of the disk, or in what may be there. */
  readonly changed = (sector: number): void => {
    this.stale[sector >> this.world.scenario.shift] = 1;
    this.anyStale = true;
  };

  /** A sector of the metadata file has one version more. */
  readonly metadataChanged = (sector: number): void => {
    const perSector = HEADERS_PER_SECTOR[this.world.scenario.version];
    const [before, now] = this.metadata().possible(sector).slice(-2);
    const first = (sector - 1) * perSector;
    const end = Math.min(first + perSector, this.stale.length);
    for (let stripe = Math.max(first, 0); stripe < end; stripe++) {
      if (before[stripe - first] === now[stripe - first]) continue;
      this.stale[stripe] = 1;
      this.anyStale = true;
    }
  };

  /** Everything may have changed. */
  restarted(): void {
    this.stale.fill(1);
    this.anyStale = true;
    this.shown.fill(0);
  }

  /** The guest begins to write to a stripe. */
  noteTouched(stripe: number): void {
    if (this.world.scenario.trackWritten) this.touched[stripe] = 1;
  }

  /** The guest was told that it has written to a stripe, or the disk has its data. */
  noteWritten(stripe: number): void {
    if (this.world.scenario.trackWritten) this.written[stripe] = 1;
    this.stale[stripe] = 1;
    this.anyStale = true;
  }

  /** The bits of a stripe that a power cut can't take away. */
  durableBits(stripe: number): number {
    let bits = 0xff;
    this.eachHeader(stripe, (header) => {
      bits &= header;
    });
    return bits;
  }

  /** Looks at what has changed since the last time. @param states what the program shows of stripes */
  check(states: Uint8Array | null): void {
    if (!this.anyStale && !states) return;
    const { stripes } = this.world.scenario;
    for (let stripe = 0; stripe < stripes; stripe++) {
      const shown = states ? states[stripe] : 0;
      if (!this.stale[stripe] && shown === this.shown[stripe]) continue;
      this.shown[stripe] = shown;
      const durable = this.durableBits(stripe);
      if (shown & ~durable) {
        this.world.fail(`stripe ${stripe} is shown as ${bits(shown)}, durable is ${bits(durable)}`);
      }
      if (this.stale[stripe]) this.checkStripe(stripe, durable);
    }
    this.stale.fill(0);
    this.anyStale = false;
  }

  private checkStripe(stripe: number, durable: number): void {
    const { hasSource, trackWritten } = this.world.scenario;
    let everLocal = !hasSource[stripe];
    let everMissing = false;
    let everUnwritten = false;
    this.eachHeader(stripe, (header) => {
      const source = (header & HAS_SOURCE) !== 0;
      if (source !== hasSource[stripe] || header > 7) {
        this.world.fail(`the metadata says ${bits(header)} of stripe ${stripe}`);
      }
      if (header & WRITTEN && !this.touched[stripe]) {
        this.world.fail(`stripe ${stripe} is recorded as written to, and nobody did`);
      }
      if (!source) return;
      if (header & FETCHED) everLocal = true;
      else everMissing = true;
      if ((header & (FETCHED | WRITTEN)) === FETCHED) everUnwritten = trackWritten;
    });
    if (this.written[stripe] && !(durable & WRITTEN)) {
      this.world.fail(`that stripe ${stripe} was written to can be lost`);
    }
    this.eachSector(stripe, (sector) => {
      if (everLocal) {
        for (const value of this.disk().possible(sector)) {
          this.demand(stripe, sector, value);
          if (everUnwritten && isGuestData(value)) {
            this.world.fail(`stripe ${stripe} may have guest data, local, but not written to`);
          }
        }
      }
      if (everMissing) this.demand(stripe, sector, sourceSector(this.world.scenario, sector));
    });
  }

  private demand(stripe: number, sector: number, value: number): void {
    const model = this.model();
    if (model.mayKeep(sector, value)) return;
    this.world.fail(
      `a power cut may leave ${told(value)} in sector ${sector} of stripe ${stripe}, ` +
        `which should be ${model.describeKept(sector)}`,
    );
  }

  private eachSector(stripe: number, look: (sector: number) => void): void {
    const { shift, diskSectors } = this.world.scenario;
    const end = Math.min((stripe + 1) << shift, diskSectors);
    for (let sector = stripe << shift; sector < end; sector++) look(sector);
  }

  private eachHeader(stripe: number, look: (header: number) => void): void {
    const at = stripe % HEADERS_PER_SECTOR[this.world.scenario.version];
    const sector = this.layout.sectorOffset(stripe) / SECTOR;
    const versions = this.metadata().possible(sector);
    for (let i = 0; i < versions.length; i++) look(versions[i][at]);
  }
}

function bits(state: number): string {
  const names = [state & HAS_SOURCE && 'source', state & FETCHED && 'fetched'];
  return [...names, state & WRITTEN && 'written'].filter(Boolean).join('+') || 'nothing';
}
