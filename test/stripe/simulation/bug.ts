import type { BlockDevice } from '../../../src/device/request.ts';
import type { Coordinator, CoordinatorParts } from '../../../src/stripe/coordinator.ts';
import type { LazyLayer } from '../../../src/stripe/lazy_layer.ts';
import type { Surroundings } from './program.ts';
import type { World } from './world.ts';

/** A way to break the program, by which the simulation shows that it would notice. */
export interface Bug {
  name: string;
  /** The program believes what the cache of the metadata file holds. */
  trustsCache?: boolean;
  /** Changes what the coordinator works with. */
  parts?(parts: CoordinatorParts, around: Surroundings): void;
  coordinator?(coordinator: Coordinator, world: World): void;
  /** Changes what a queue's lazy layer works with. */
  devices?(devices: { base: BlockDevice; image: BlockDevice | null }, world: World): void;
  layer?(layer: LazyLayer, world: World): void;
}

type Callable = (...parameters: never[]) => unknown;
type MethodOf<Owner> = {
  [Name in keyof Owner]: Owner[Name] extends Callable ? Name : never;
}[keyof Owner];

/** Puts another method in the place of an object's own, which it is given. */
export function replace<Owner extends object, Name extends MethodOf<Owner>>(
  object: Owner,
  name: Name,
  make: (original: Owner[Name]) => Owner[Name],
): void {
  const original = object[name] as Callable;
  object[name] = make(original.bind(object) as Owner[Name]);
}
