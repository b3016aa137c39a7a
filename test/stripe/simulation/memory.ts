import { load, SECTOR, store } from './values.ts';

/** Addresses begin here: zero is nobody's. */
const START = 4096;

/** The guest's memory. */
export class Memory {
  private readonly words: Int32Array;

  /** @param sectors of 512 bytes */
  constructor(sectors: number) {
    this.words = new Int32Array((sectors * SECTOR) / 4);
  }

  /** The address of a sector. */
  address(sector: number): number {
    return START + sector * SECTOR;
  }

  load(address: number, index: number): number {
    return load(this.words, (address - START) / SECTOR + index);
  }

  store(address: number, index: number, value: number): void {
    store(this.words, (address - START) / SECTOR + index, value);
  }
}
