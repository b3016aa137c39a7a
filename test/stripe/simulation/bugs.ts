import type { BlockDevice } from '../../../src/device/request.ts';
import type { Coordinator, CoordinatorParts } from '../../../src/stripe/coordinator.ts';
import type { LazyLayer, LazyOptions } from '../../../src/stripe/lazy_layer.ts';
import type { World } from './world.ts';

/** A way to break the program, to see that the simulation notices. */
export interface Bug {
  name: string;
  /** What the program starts from is taken for durable. */
  trustsCache?: boolean;
  /** Changes what the coordinator works with. */
  parts?(parts: CoordinatorParts, world: World): void;
  coordinator?(coordinator: Coordinator, world: World): void;
  devices?(devices: { base: BlockDevice; image: BlockDevice | null }, world: World): void;
  layer?(layer: LazyLayer, world: World, options: LazyOptions): void;
}
