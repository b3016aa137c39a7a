import type { Mapping } from './yaml_mapping.ts';

interface LaterFeature {
  /** The field whose value asks for the feature. */
  key: string;
  /** What the user would get, as the subject of a sentence with `are` or `is`. */
  missing: string;
}

/**
 * Fields that are validated but whose feature this version does not have. A field is refused unless
 * it is absent, null or `false`. Each capability takes its rows out of this table.
 */
const laterFeatures: readonly LaterFeature[] = [
  { key: 'status_path', missing: 'the status file is' },
];

/** Reports every field of a later version that is not at its default. */
export function refuseLaterFeatures(mapping: Mapping): void {
  for (const { key, missing } of laterFeatures) {
    if (mapping.isSet(key)) {
      mapping.error(key, `${missing} not in this version of ubiblk yet; remove the field`);
    }
  }
}
