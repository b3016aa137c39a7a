/** What bugs need to see of classes that hide it: names and types as they are there. */
import type { BlockDevice, BlockRequest } from '../../../../src/device/request.ts';
import type { Coordinator } from '../../../../src/stripe/coordinator.ts';
import type { TargetDisk } from '../../../../src/stripe/interfaces.ts';
import type { Change } from '../../../../src/stripe/journal.ts';
import type { LazyLayer } from '../../../../src/stripe/lazy_layer.ts';
import type { QueueMessage, SharedStripes, Want } from '../../../../src/stripe/shared_state.ts';

export interface Asker {
  queue: number;
  want: Want;
}

export interface Work {
  phase: string;
  askers: Asker[];
  holder: Asker | null;
  wished: boolean;
}

export interface CoordinatorInside {
  states: Uint8Array;
  idle: { leave(stripe: number): void };
  givenUp: boolean;
  work: Map<number, Work>;
  parts: { shared: SharedStripes; target: TargetDisk };
  journal: {
    pending: Change[];
    dirty: Set<number>;
    failed(error: Error): Promise<void>;
    add(change: Change, urgent: boolean): void;
    end(): Promise<void>;
  };
  /** There where there is a source. */
  fetcher: {
    options: { diskBytes: number; autofetchBytesPerSecond: number; mostUnrecorded?: number };
    autofetch: boolean;
    buffers: number;
    running: Map<number, number>;
    awaited: Set<number>;
    retries: Map<number, object>;
    request(stripe: number): void;
    wish(stripe: number): void;
    retryOrForget(stripe: number, error: Error): void;
    noteFailure(): void;
    doubtRunning(): void;
    pump(): void;
    end(): Promise<void>;
  } | null;
  join(stripe: number, work: Work, asker: Asker): void;
  claim(stripe: number, work: Work, holder: Asker): void;
  claimDone(stripe: number, ok: boolean): void;
  leave(stripe: number, work: Work): void;
  claimFailed(stripe: number, work: Work, waiting: boolean): void;
  commit(stripe: number, work: Work): void;
  published(change: Change): void;
  giveUp(): void;
  failAskers(stripe: number, work: Work, result: number): void;
  dataLost(error: Error, changes: number): void;
  unrecorded(change: Change): void;
  answer(stripe: number, asker: Asker, result: number): void;
  delay(queue: number, answer: object): void;
  noteQuiet(): void;
  closeSourceIfDone(): void;
}

export interface Parked {
  missing: number;
}

export interface LayerInside {
  base: BlockDevice;
  image: BlockDevice | null;
  options: { imageBytes: number; stripeBytes: number };
  large: { goOn(part: BlockRequest, whole: BlockRequest): void; release(part: BlockRequest): void };
  submit(request: BlockRequest): void;
  post(message: QueueMessage): void;
  isReady(stripe: number, read: boolean): boolean;
  park(request: BlockRequest, first: number, last: number): void;
  wantOf(request: BlockRequest, stripe: number): Want;
  waitAnswered(stripe: number, want: Want, result: number): void;
  giveBack(claims: number[]): void;
  answered(parked: Parked, result: number): void;
}

export const insideCoordinator = (coordinator: Coordinator) =>
  coordinator as unknown as CoordinatorInside;

export const insideLayer = (layer: LazyLayer) => layer as unknown as LayerInside;
