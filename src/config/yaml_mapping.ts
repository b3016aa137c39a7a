import {
  type Document,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  LineCounter,
  type Node,
  type Pair,
  parseDocument,
  type Scalar,
  visit,
  type YAMLError,
  type YAMLMap,
} from 'yaml';
import type { Secret } from '../crypto/secret.ts';
import { nearestName } from '../nearest.ts';
import type { Position, Problems } from './problems.ts';
import type { VeiledText } from './veiled_text.ts';

type PairOfNodes = Pair<Node, Node | null>;

const plainInteger = /^(?:[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+)$/;

/**
 * Sentences of our own for the parser's errors: the parser quotes the source in some of its, and
 * the source may be a secret.
 */
const syntaxSentences: Record<string, string> = {
  ALIAS_PROPS: 'an alias cannot have an anchor or a tag',
  BAD_ALIAS: 'the alias names no anchor before it',
  BAD_DIRECTIVE: 'the directive is not understood',
  BAD_DQ_ESCAPE: 'a backslash sequence in the double-quoted string is not valid',
  BAD_INDENT: 'the indentation does not fit the lines around it, or a bracket is left open',
  BAD_PROP_ORDER: 'anchors and tags must come after the indicators ? : -',
  BAD_SCALAR_START: 'a plain value cannot start with this character; put the value in quotes',
  BLOCK_AS_IMPLICIT_KEY: 'nested mappings cannot be written on one line; use { } or new lines',
  BLOCK_IN_FLOW: 'block values cannot be used inside { } or [ ]',
  COMMA_IN_FLOW: 'a comma is missing or misplaced',
  MISSING_CHAR: 'a character is missing (a quote, a bracket, a comma, a colon or a space)',
  MULTILINE_IMPLICIT_KEY: 'a key must be on one line',
  MULTIPLE_DOCS: 'the file holds more than one YAML document',
  TAG_RESOLVE_FAILED: 'the tag is not known here',
  TAB_AS_INDENT: 'tabs cannot be used as indentation',
  UNEXPECTED_TOKEN: 'this is not expected here',
};

/** The range of an integer field, and what else is asked of it. */
export interface IntegerRange {
  min: number;
  max: number;
  powerOfTwo?: boolean;
}

/** The text of a secret, which may have been kept out of JavaScript's strings. */
export interface Base64Text {
  /** @returns a secret for the caller to wipe, or undefined if the text is not standard base64 */
  decode(): Secret | undefined;
}

/**
 * Parses a file as one YAML 1.2 mapping. Syntax errors and repeated keys go to `problems`; returns
 * undefined when there is no mapping to go on with.
 */
export function parseMapping(
  source: VeiledText,
  problems: Problems,
  strict: boolean,
): Mapping | undefined {
  const lines = new LineCounter();
  const document = parseDocument(source.text, {
    version: '1.2',
    schema: 'core',
    uniqueKeys: true,
    prettyErrors: false,
    lineCounter: lines,
  });
  const place = (offset: number): Position => {
    const { line, col } = lines.linePos(offset);
    return { line, column: col };
  };
  const context = { problems, place, strict, source };
  reportSyntax(document, context);
  if (problems.count > 0) {
    return undefined;
  }
  if (!isMap(document.contents)) {
    problems.error(
      { line: 1, column: 1 },
      'the file must hold one YAML mapping (key: value lines)',
    );
    return undefined;
  }
  return new Mapping(document, document.contents as YAMLMap<Node, Node | null>, '', context);
}

/** Reports the first syntax error, from which others usually follow, or else every repeated key. */
function reportSyntax(document: Document, { problems, place, source }: Context): void {
  const errors = [...document.errors, ...document.warnings];
  const syntaxError = errors.find(({ code }) => code !== 'DUPLICATE_KEY');
  if (syntaxError !== undefined) {
    const sentence = syntaxSentences[syntaxError.code] ?? 'this is not valid';
    problems.error(place(syntaxError.pos[0]), `YAML syntax: ${sentence}`);
    return;
  }
  for (const error of errors) {
    const key = source.shorten(repeatedKey(document, error));
    problems.error(place(error.pos[0]), `${key}: is given twice`);
  }
  visit(document, {
    Alias(_, alias) {
      if (alias.resolve(document) === undefined) {
        const sentence = `YAML syntax: ${syntaxSentences.BAD_ALIAS}`;
        problems.error(place(alias.range?.[0] ?? 0), sentence);
      }
    },
  });
}

function repeatedKey(document: Document, error: YAMLError): string {
  let name = 'a key';
  visit(document, {
    Pair(_, pair) {
      if (isScalar(pair.key) && pair.key.range?.[0] === error.pos[0]) {
        name = String(pair.key.value);
        return visit.BREAK;
      }
      return undefined;
    },
  });
  return name;
}

interface Context {
  problems: Problems;
  /** Unknown keys are errors. */
  strict: boolean;
  place: (offset: number) => Position;
  source: VeiledText;
}

/**
 * Reads the fields of one YAML mapping. Each accessor reports what is wrong with its field to the
 * file's problems and then gives undefined, as for a field that is absent or null; the caller goes
 * on, so that all problems are found. Values never appear in messages unless they are numbers,
 * booleans or short strings of fields that hold no secret; and of those, as of keys, words that may
 * be a secret in the wrong place are left out.
 */
export class Mapping {
  readonly #document: Document;
  readonly #pairs = new Map<string, PairOfNodes>();
  readonly #others: PairOfNodes[] = [];
  readonly #known = new Set<string>();
  readonly #path: string;
  readonly #start: number;
  readonly #context: Context;

  constructor(
    document: Document,
    node: YAMLMap<Node, Node | null>,
    path: string,
    context: Context,
  ) {
    this.#document = document;
    this.#path = path;
    this.#start = node.range?.[0] ?? 0;
    this.#context = context;
    for (const pair of node.items as PairOfNodes[]) {
      if (isScalar(pair.key) && typeof pair.key.value === 'string') {
        this.#pairs.set(pair.key.value, pair);
      } else {
        this.#others.push(pair);
      }
    }
  }

  /** True for a field that is there and not null. */
  has(key: string): boolean {
    return this.#value(key) !== undefined;
  }

  /** True for a field that is there and neither null nor false: it asks for something. */
  isSet(key: string): boolean {
    const node = this.#value(key);
    return node !== undefined && !(isScalar(node) && node.value === false);
  }

  error(key: string, sentence: string): void {
    this.#context.problems.error(this.#position(key), `${this.#field(key)}: ${sentence}`);
  }

  warn(key: string, sentence: string): void {
    this.#context.problems.warn(this.#position(key), `${this.#field(key)}: ${sentence}`);
  }

  string(key: string): string | undefined {
    const node = this.#value(key);
    return node === undefined ? undefined : this.#stringOf(node, key);
  }

  requiredString(key: string): string | undefined {
    if (!this.has(key)) {
      this.error(key, 'is required');
      return undefined;
    }
    return this.string(key);
  }

  /** A string that can name a file: not empty, no NUL. */
  path(key: string): string | undefined {
    const path = this.string(key);
    if (path === '') {
      this.error(key, 'must not be empty');
      return undefined;
    }
    if (path?.includes('\0')) {
      this.error(key, 'must not contain a NUL character');
      return undefined;
    }
    return path;
  }

  requiredPath(key: string): string | undefined {
    if (!this.has(key)) {
      this.error(key, 'is required');
      return undefined;
    }
    return this.path(key);
  }

  boolean(key: string): boolean | undefined {
    const node = this.#value(key);
    if (node === undefined) {
      return undefined;
    }
    if (isScalar(node) && typeof node.value === 'boolean') {
      return node.value;
    }
    this.error(key, `must be true or false, not ${this.#describe(node)}`);
    return undefined;
  }

  integer(key: string, range: IntegerRange): number | undefined {
    const node = this.#value(key);
    return node === undefined ? undefined : this.#integerOf(node, key, range);
  }

  choice<Word extends string>(key: string, words: readonly Word[]): Word | undefined {
    const node = this.#value(key);
    if (node === undefined) {
      return undefined;
    }
    const wanted = words.map((word) => `'${word}'`).join(' or ');
    if (!isScalar(node) || typeof node.value !== 'string') {
      this.error(key, `must be ${wanted}, not ${this.#describe(node)}`);
      return undefined;
    }
    const word = words.find((candidate) => candidate === node.value);
    if (word === undefined) {
      this.error(key, `must be ${wanted}, not '${this.#context.source.shorten(node.value)}'`);
    }
    return word;
  }

  requiredChoice<Word extends string>(key: string, words: readonly Word[]): Word | undefined {
    if (!this.has(key)) {
      const wanted = words.map((word) => `'${word}'`).join(' or ');
      this.error(key, `is required: ${wanted}`);
      return undefined;
    }
    return this.choice(key, words);
  }

  integers(key: string, range: IntegerRange): number[] | undefined {
    return this.#list(key, 'numbers', (node, field) => this.#integerOf(node, field, range));
  }

  strings(key: string): string[] | undefined {
    return this.#list(key, 'strings', (node, field) => this.#stringOf(node, field));
  }

  /** A string that holds a secret. */
  base64(key: string): Base64Text | undefined {
    const node = this.#value(key);
    return node === undefined ? undefined : this.#base64Of(node, key);
  }

  /** A list of them. */
  base64List(key: string): Base64Text[] | undefined {
    return this.#list(key, 'strings', (node, field) => this.#base64Of(node, field));
  }

  mapping(key: string): Mapping | undefined {
    const node = this.#value(key);
    if (node === undefined) {
      return undefined;
    }
    if (!isMap(node)) {
      this.error(key, `must be a mapping, not ${describeKind(node)}`);
      return undefined;
    }
    const path = this.#field(key);
    return new Mapping(this.#document, node as YAMLMap<Node, Node | null>, path, this.#context);
  }

  /**
   * To be called when all fields were read: reports the keys that nothing asked for, each with the
   * nearest known key.
   */
  reportUnknownKeys(): void {
    for (const [key, pair] of this.#pairs) {
      if (!this.#known.has(key)) {
        this.#reportUnknown(key, pair);
      }
    }
    for (const pair of this.#others) {
      this.#reportUnknown(String(pair.key), pair);
    }
  }

  #reportUnknown(veiledKey: string, pair: PairOfNodes): void {
    const key = this.#context.source.shorten(veiledKey);
    const nearest = nearestName(key, this.#known);
    const hint = nearest === undefined ? '' : `, did you mean '${nearest}'?`;
    const position = this.#context.place(pair.key.range?.[0] ?? 0);
    const text = `${this.#field(key)}: unknown key${hint}`;
    if (this.#context.strict) {
      this.#context.problems.error(position, text);
    } else {
      this.#context.problems.warn(position, text);
    }
  }

  #list<Item>(
    key: string,
    what: string,
    read: (node: Node | null, field: string) => Item | undefined,
  ): Item[] | undefined {
    const list = this.#value(key);
    if (list === undefined) {
      return undefined;
    }
    if (!isSeq(list)) {
      this.error(key, `must be a list of ${what}, not ${describeKind(list)}`);
      return undefined;
    }
    const errorsBefore = this.#context.problems.count;
    const items = list.items.map((item, index) => {
      return read(this.#resolve(item as Node | null) ?? null, `${key}[${index}]`);
    });
    return this.#context.problems.count > errorsBefore ? undefined : (items as Item[]);
  }

  #stringOf(node: Node | null, field: string): string | undefined {
    const veiled = this.#veiledString(node, field);
    return veiled === undefined ? undefined : this.#context.source.unveil(veiled);
  }

  #base64Of(node: Node | null, field: string): Base64Text | undefined {
    const veiled = this.#veiledString(node, field);
    const { source } = this.#context;
    return veiled === undefined ? undefined : { decode: () => source.decodeBase64(veiled) };
  }

  #veiledString(node: Node | null, field: string): string | undefined {
    if (isScalar(node) && typeof node.value === 'string') {
      return node.value;
    }
    const quotes = isScalar(node) && node.value !== null ? '; put it in quotes' : '';
    this.error(field, `must be a string, not ${describeKind(node)}${quotes}`);
    return undefined;
  }

  #integerOf(node: Node | null, field: string, range: IntegerRange): number | undefined {
    const kind = range.powerOfTwo ? 'a power of two' : 'a whole number';
    const wanted = `must be ${kind} from ${range.min} to ${range.max}`;
    if (!isScalar(node) || typeof node.value !== 'number' || !plainInteger.test(sourceOf(node))) {
      this.error(field, `${wanted}, not ${this.#describe(node)}`);
      return undefined;
    }
    const value = node.value;
    const inRange = value >= range.min && value <= range.max;
    if (!inRange || (range.powerOfTwo && !Number.isInteger(Math.log2(value)))) {
      this.error(field, `${wanted}, not ${sourceOf(node)}`);
      return undefined;
    }
    return value + 0; // turns -0 into 0
  }

  /** What a value is, with the value itself where that helps: for fields that hold no secret. */
  #describe(node: Node | null): string {
    if (isScalar(node)) {
      if (typeof node.value === 'number' || typeof node.value === 'boolean') {
        return sourceOf(node);
      }
      if (typeof node.value === 'string' && node.value.length <= 32) {
        return `the string '${this.#context.source.shorten(node.value)}'`;
      }
    }
    return describeKind(node);
  }

  #value(key: string): Node | undefined {
    this.#known.add(key);
    const node = this.#resolve(this.#pairs.get(key)?.value ?? null);
    return node === undefined || (isScalar(node) && node.value === null) ? undefined : node;
  }

  #resolve(node: Node | null): Node | undefined {
    return (isAlias(node) ? node.resolve(this.#document) : node) ?? undefined;
  }

  #field(key: string): string {
    return this.#path === '' ? key : `${this.#path}.${key}`;
  }

  /** Where `key` stands; for an item of a list (`cpus[1]`) where the item does. */
  #position(field: string): Position {
    const [, key, index] = /^(.*?)(?:\[(\d+)\])?$/.exec(field) ?? [];
    const pair = this.#pairs.get(key);
    const list = index === undefined ? undefined : this.#resolve(pair?.value ?? null);
    const item = isSeq(list) ? (list.items[Number(index)] as Node | null) : null;
    return this.#context.place(item?.range?.[0] ?? pair?.key.range?.[0] ?? this.#start);
  }
}

function sourceOf(scalar: Scalar): string {
  return scalar.source ?? String(scalar.value);
}

function describeKind(node: Node | null): string {
  if (isMap(node)) {
    return 'a mapping';
  }
  if (isSeq(node)) {
    return 'a list';
  }
  if (!isScalar(node) || node.value === null) {
    return 'null';
  }
  return typeof node.value === 'boolean' ? 'true or false' : `a ${typeof node.value}`;
}
