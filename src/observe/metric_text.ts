/**
 * Writes metrics line by line: https://prometheus.io/docs/instrumenting/exposition_formats/ and
 * https://prometheus.io/docs/specs/om/open_metrics_spec/.
 */

export type Labels = Readonly<Record<string, string>>;
type Kind = 'counter' | 'gauge' | 'histogram';

export class MetricText {
  /** The lines of each family, which must stand together. */
  private readonly families: string[][] = [];

  constructor(private readonly openMetrics: boolean) {}

  /**
   * Makes a family, whose samples may be added at any time until the end.
   * @param name of a counter without `_total`
   * @param help one sentence
   */
  family(name: string, kind: Kind, help: string): MetricFamily {
    const sample = kind === 'counter' ? `${name}_total` : name;
    // In the older format a counter's family is called as its samples are.
    const head = this.openMetrics ? name : sample;
    const lines = [`# HELP ${head} ${escaped(help)}`, `# TYPE ${head} ${kind}`];
    this.families.push(lines);
    return new MetricFamily(sample, lines);
  }

  gauge(name: string, help: string, value: number, labels?: Labels): void {
    this.family(name, 'gauge', help).sample(value, labels);
  }

  counter(name: string, help: string, value: number): void {
    this.family(name, 'counter', help).sample(value);
  }

  /** @returns all of it; nothing may be added any more */
  end(): string {
    const lines = this.families.flat();
    if (this.openMetrics) lines.push('# EOF');
    return `${lines.join('\n')}\n`;
  }
}

export class MetricFamily {
  constructor(
    private readonly name: string,
    private readonly lines: string[],
  ) {}

  sample(value: number, labels: Labels = {}): void {
    this.lines.push(`${this.name}${labelText(labels)} ${numberText(value)}`);
  }

  /** @param below how many were below each end, in rising order */
  histogram(
    below: readonly (readonly [end: number, count: number])[],
    count: number,
    sum: number,
    labels: Labels,
  ): void {
    const { name, lines } = this;
    for (const [end, number] of below) {
      lines.push(`${name}_bucket${labelText({ ...labels, le: numberText(end) })} ${number}`);
    }
    lines.push(
      `${name}_bucket${labelText({ ...labels, le: '+Inf' })} ${count}`,
      `${name}_sum${labelText(labels)} ${numberText(sum)}`,
      `${name}_count${labelText(labels)} ${count}`,
    );
  }
}

function labelText(labels: Labels): string {
  const texts = Object.entries(labels).map(([name, value]) => `${name}="${escaped(value)}"`);
  return texts.length === 0 ? '' : `{${texts.join(',')}}`;
}

function escaped(text: string): string {
  return text.replaceAll('\\', '\\\\').replaceAll('\n', '\\n').replaceAll('"', '\\"');
}

/** As Go writes a number, which readers expect of the ends of buckets. */
function numberText(value: number): string {
  const text = value !== 0 && Math.abs(value) < 1e-4 ? value.toExponential() : String(value);
  return text.replace(/e([+-])(\d)$/, 'e$10$2');
}
