import { expect, test } from 'bun:test';
import { LatencyHistogram } from '../../src/probe/latency_histogram.ts';

test('mean and percentiles are within a bucket of the truth', () => {
  const histogram = new LatencyHistogram();
  for (let us = 1; us <= 1000; us++) histogram.add(us * 1000);
  expect(histogram.count).toBe(1000);
  expect(histogram.meanUs).toBeCloseTo(500.5, 6);
  for (const share of [0.01, 0.5, 0.99, 1]) {
    const truth = 1000 * share;
    expect(histogram.percentileUs(share)).toBeGreaterThanOrEqual(truth);
    expect(histogram.percentileUs(share)).toBeLessThan(truth * 1.05);
  }
});

test('extremes have their bucket, and nothing has no latency', () => {
  const histogram = new LatencyHistogram();
  expect(histogram.meanUs).toBe(0);
  expect(histogram.percentileUs(0.99)).toBe(0);
  histogram.add(0);
  histogram.add(Number.MAX_SAFE_INTEGER);
  expect(histogram.percentileUs(0.5)).toBeLessThan(0.002);
  expect(histogram.percentileUs(1)).toBeGreaterThan(1e6);
});
