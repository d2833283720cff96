import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  emptyLedger,
  free,
  LedgerError,
  ledgerText,
  noteCleaning,
  parseLedger,
  reserve,
  type Sold,
  soldOn,
} from '../../../../operator/core/allocation/ledger.ts';

const sold = (gpus: number, more: Partial<Sold> = {}): Sold => ({
  gpus,
  cpuMillis: gpus * 1000,
  memoryBytes: gpus,
  ephemeralBytes: gpus,
  pods: gpus,
  consumer: '0xc',
  offerName: 'o',
  since: '2026-01-01T00:00:00Z',
  ...more,
});
const sellable = { gpus: 4, cpuMillis: 4000, memoryBytes: 4, ephemeralBytes: 4, pods: 4 };

describe('the ledger of a node', () => {
  test('sells what is free and no more', () => {
    const one = reserve(emptyLedger('n'), '0x1', sold(3), sellable);
    expect(one.outcome).toBe('reserved');
    if (one.outcome !== 'reserved') return;
    expect(reserve(one.ledger, '0x2', sold(2), sellable)).toEqual({
      outcome: 'exhausted',
      lacking: 'GPUs, CPU, memory, ephemeral storage, pods',
    });
    expect(reserve(one.ledger, '0x2', sold(1, { memoryBytes: 2 }), sellable)).toEqual({
      outcome: 'exhausted',
      lacking: 'memory',
    });
    expect(reserve(one.ledger, '0x2', sold(1), sellable).outcome).toBe('reserved');
  });

  test('answers a repeated request with what it holds, also when the node has shrunk since', () => {
    const one = reserve(emptyLedger('n'), '0x1', sold(4), sellable);
    if (one.outcome !== 'reserved') throw new Error('not reserved');
    expect(reserve(one.ledger, '0x1', sold(4), { ...sellable, gpus: 0 })).toEqual({
      outcome: 'held',
      ledger: one.ledger,
    });
  });

  test('counts each kind of device by itself, and CPU and memory together', () => {
    const part = 'nvidia.com/mig-1g.10gb';
    const one = reserve(emptyLedger('n'), '0x1', sold(2), sellable);
    if (one.outcome !== 'reserved') throw new Error('not reserved');
    const two = reserve(one.ledger, '0x2', { ...sold(1, { device: part }), gpus: 4 }, sellable);
    if (two.outcome !== 'reserved') throw new Error('not reserved');
    expect(soldOn(two.ledger)).toMatchObject({ gpus: 2, cpuMillis: 3000 });
    expect(soldOn(two.ledger, part)).toMatchObject({ gpus: 4, cpuMillis: 3000 });
    expect(reserve(two.ledger, '0x3', sold(1, { device: part }), sellable)).toMatchObject({ lacking: 'GPUs' });
    expect(reserve(two.ledger, '0x3', sold(1), sellable).outcome).toBe('reserved');
    expect(parseLedger(ledgerText(two.ledger))).toEqual(two.ledger);
  });

  test('holds what is still being cleaned up, and says for what', () => {
    const one = reserve(emptyLedger('n'), '0x1', sold(4), sellable);
    if (one.outcome !== 'reserved') throw new Error('not reserved');
    const noted = noteCleaning(one.ledger, '0x1', 'the namespace is not gone');
    expect(parseLedger(ledgerText(noted)).entries['0x1']?.cleaning).toBe('the namespace is not gone');
    expect(noteCleaning(noted, '0x1', 'the namespace is not gone')).toBe(noted);
    expect(noteCleaning(noted, '0x2', 'it')).toBe(noted);
    expect(reserve(noted, '0x2', sold(1), sellable).outcome).toBe('exhausted');
  });

  test('gives back only what was held', () => {
    const ledger = emptyLedger('n');
    expect(free(ledger, '0x1')).toBe(ledger);
  });

  test.each([
    ['nothing', ''],
    ['another document', '{}'],
    ['another version', '{"version":2,"node":"n","entries":{}}'],
    ['a negative count', '{"version":1,"node":"n","entries":{"0x1":{"gpus":-1}}}'],
    ['a missing count', '{"version":1,"node":"n","entries":{"0x1":{"gpus":1}}}'],
  ])('%s is never taken for an empty ledger', (_name, text) => {
    expect(() => parseLedger(text)).toThrow(LedgerError);
  });

  test('whatever is asked for in whatever order, what is sold stays within what there is', () => {
    const step = fc.record({
      lease: fc.integer({ min: 0, max: 5 }),
      gpus: fc.integer({ min: 1, max: 5 }),
      leave: fc.boolean(),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        let ledger = emptyLedger('n');
        for (const { lease, gpus, leave } of steps) {
          if (leave) ledger = free(ledger, `0x${lease}`);
          else {
            const reservation = reserve(ledger, `0x${lease}`, sold(gpus), sellable);
            if (reservation.outcome !== 'exhausted') ledger = reservation.ledger;
          }
          expect(soldOn(ledger).gpus).toBeLessThanOrEqual(sellable.gpus);
          expect(parseLedger(ledgerText(ledger))).toEqual(ledger);
        }
      }),
      { seed: 7, numRuns: 300 },
    );
  });
});
