/** What people read before, and when, a node goes. */
import { describe, expect, it } from 'vitest';
import { farewell, farewellToData, lossInWords, soonLost, warnWhenDue } from '../../../../operator/core/lease/warn.ts';
import { at, chain, escrow, instant, lease, node, observed, quoteRecord, record } from '../../../support/builders.ts';

const serving = (seconds: number, change: Parameters<typeof observed>[0] = {}) =>
  observed({
    now: at(seconds),
    record: record({
      quote: quoteRecord(),
      deposit: '360000',
      startedAt: instant(10),
      meter: { servedMs: (seconds - 10) * 1000, countedUntil: instant(seconds) },
    }),
    chain: chain(seconds, { escrow: escrow() }),
    node: node(10),
    ...change,
  });

describe('before the end', () => {
  it('says when the drain begins, in absolute time, and why', () => {
    const { action } = warnWhenDue(serving(2410), 2400);
    expect(action).toMatchObject({
      do: 'warn',
      message: expect.stringContaining(`at about ${instant(3310).replace('.000', '')} its term of 3600 s is over`),
    });
  });

  it.each([
    ['before it began', { record: record({ quote: quoteRecord() }) }],
    [
      'while nothing is known of the chain',
      { chain: { state: 'unknown', reason: 'ChainUnreachable', message: '' } as const },
    ],
  ])('says nothing %s', (_, change) => {
    expect(warnWhenDue(serving(3000, change), 2990)).toEqual({ waitSeconds: Number.POSITIVE_INFINITY });
  });

  it('is looked at again just in time', () => {
    expect(warnWhenDue(serving(1010), 1000).waitSeconds).toBe(1400);
  });
});

describe('when the drain begins', () => {
  const why = { reason: 'Expired', message: 'the term of 3600 s is over.', at: instant(3310), retry: false } as const;
  it('says until when a pod may stay: as long as the lease allows', () => {
    const seen = serving(1000, { lease: lease({ drainTimeoutSeconds: 120 }) });
    expect(farewell(seen, why)).toContain(`at ${instant(1120).replace('.000', '')} it is deleted`);
  });
  it('says to claims until when what they store can be copied away', () => {
    const seen = serving(1000, { lease: lease({ drainTimeoutSeconds: 120 }) });
    expect(farewellToData(seen, why)).toContain(`is lost when its node goes, at ${instant(1120).replace('.000', '')}`);
    expect(soonLost('Lease ml/train is about to end.')).toMatch(
      /^Lease ml\/train is about to end\. What this claim stores is lost/,
    );
  });
  it.each([
    ['names no claim where there is none', [], ''],
    ['names the one claim that loses its data', ['ml/a'], ' What this claim stores is lost with it: ml/a.'],
    [
      'names some of many',
      Array.from({ length: 10 }, (_, i) => `ml/${i}`),
      ' What these claims store is lost with it: ml/0, ml/1, ml/2, ml/3, ml/4, ml/5, ml/6, ml/7 and 2 more.',
    ],
  ])('%s', (_, claims, said) => {
    expect(lossInWords(claims)).toBe(said);
  });
  it('and never beyond what is paid', () => {
    const seen = serving(3510, { lease: lease({ drainTimeoutSeconds: 300 }) });
    expect(farewell(seen, why)).toContain(`at ${instant(3610).replace('.000', '')} it is deleted`);
  });
});
