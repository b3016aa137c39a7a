import { expect, test } from 'bun:test';
import { LatencyHistogram, percentileUs } from '../src/latency_histogram.ts';

test('mean and percentiles are within a bucket of the truth', () => {
  const histogram = new LatencyHistogram();
  for (let us = 1; us <= 1000; us++) histogram.add(us * 1000);
  expect(histogram.count).toBe(1000);
  expect(histogram.meanUs).toBeCloseTo(500.5, 6);
  expect(histogram.maxUs).toBe(1000);
  for (const share of [0.01, 0.5, 0.99, 1]) {
    const truth = 1000 * share;
    expect(histogram.percentileUs(share)).toBeGreaterThanOrEqual(truth);
    expect(histogram.percentileUs(share)).toBeLessThan(truth * 1.05);
  }
  // None is longer than the longest.
  expect(histogram.percentileUs(1)).toBe(1000);
});

test('every latency is in a bucket that ends at most 1/32 above it', () => {
  for (let ns = 128; ns < 2 ** 40; ns = ns * 1.013 + 1) {
    const histogram = new LatencyHistogram();
    histogram.add(ns);
    const [[endUs, count]] = histogram.buckets();
    expect(count).toBe(1);
    expect(endUs * 1000).toBeGreaterThan(ns);
    expect(endUs * 1000).toBeLessThanOrEqual(ns * (1 + 1 / 32) + 1e-6);
  }
});

test('extremes have their bucket, and nothing has no latency', () => {
  const histogram = new LatencyHistogram();
  expect(histogram.meanUs).toBe(0);
  expect(histogram.percentileUs(0.99)).toBe(0);
  expect(percentileUs([], 0.5)).toBe(0);
  histogram.add(-5);
  expect(histogram.sumNs).toBe(0);
  for (const ns of [0, Number.MAX_SAFE_INTEGER, Number.POSITIVE_INFINITY]) histogram.add(ns);
  expect(histogram.count).toBe(4);
  expect(histogram.percentileUs(0.5)).toBeLessThan(0.2);
  expect(histogram.percentileUs(1)).toBe(2 ** 40 / 1000);
});

test('powers of two divide the buckets exactly', () => {
  const histogram = new LatencyHistogram();
  for (const ns of [100, 4095, 4096, 8191, 8192, 2 ** 36]) histogram.add(ns);
  const below = [12, 13, 14, 36, 37, 60].map((power) => histogram.below(power));
  expect(below).toEqual([2, 4, 5, 5, 6, 6]);
});

test('histograms of several queues add up', () => {
  const [all, one, other] = [1, 2, 3].map(() => new LatencyHistogram());
  one.add(1000);
  other.add(5000);
  other.add(1000);
  for (const each of [one, other]) all.addAll(each);
  expect(all.count).toBe(3);
  expect(all.sumNs).toBe(7000);
  expect(all.maxUs).toBe(5);
  expect(all.buckets().map(([, count]) => count)).toEqual([2, 1]);
});
