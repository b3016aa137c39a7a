import { Dice } from './dice.ts';
import { makeScenario, type Scenario } from './scenario.ts';
import { Timeline } from './timeline.ts';

/** Thrown to end a run whose outcome is known. */
export class Violation extends Error {}

/** What all parts of a run share. */
export class World {
  readonly dice: Dice;
  readonly timeline = new Timeline();
  readonly scenario: Scenario;
  /** What has been found to be wrong. Code under test may swallow exceptions, but not this. */
  violation: string | null = null;
  /** Faults may happen. */
  faulty = true;
  /** The source is away, and stays so. */
  sourceGone = false;
  /** When the last fault of the disk, its metadata or the image did. */
  faultAtMs = Number.NEGATIVE_INFINITY;

  /**
   * @param trace is told what happens, where somebody wants to know
   * @param change what is to be other than the seed has it
   */
  constructor(
    readonly seed: number,
    private readonly trace: ((line: string) => void) | null,
    change: Partial<Scenario>,
  ) {
    this.dice = new Dice(seed);
    this.scenario = { ...makeScenario(this.dice), ...change };
  }

  note(text: () => string): void {
    this.trace?.(`${this.timeline.now().toFixed(3).padStart(12)} ${text()}`);
  }

  fail(text: string): void {
    this.note(() => `WRONG: ${text}`);
    this.violation ??= text;
  }

  /** Ends the run where something was found to be wrong. */
  check(): void {
    if (this.violation !== null) throw new Violation(this.violation);
  }

  /** Whether a fault happens now, that does so once in `oneIn` times; 0: never. */
  fault(oneIn: number): boolean {
    if (!this.faulty || oneIn === 0 || !this.dice.chance(oneIn)) return false;
    this.faultAtMs = this.timeline.now();
    return true;
  }
}
