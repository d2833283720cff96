/**
 * No window is ever overspent, whatever leases are opened, topped up, idle, ended, and whenever the budget is written or its
 * status is old: against a plain book of which second cost what.
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { budgetWindows, type GpuBudget } from '../../../../operator/api/budget.ts';
import { reportBudget } from '../../../../operator/core/budget/report.ts';
import { budgetRefusal, budgetRoom, viewBudgets } from '../../../../operator/core/budget/room.ts';
import { parseAtto, spendableIn, spendableWithin, spenderOf } from '../../../../operator/core/budget/spender.ts';
import { longestSeconds, windowAt } from '../../../../operator/core/budget/windows.ts';
import type { LeaseRecord } from '../../../../operator/core/lease/observed.ts';
import { priceOf, secondsFor } from '../../../../operator/core/money/price.ts';
import { at, budget, instant, quoteRecord, record, t0 } from '../../../support/builders.ts';

const labelsOf = () => ({});

interface Step {
  readonly passSeconds: number;
  readonly lease: number;
  readonly does: 'open' | 'topUp' | 'idle' | 'end';
  readonly price: number;
  readonly gpus: number;
  readonly hours: number;
  readonly counts: boolean;
}
const step: fc.Arbitrary<Step> = fc.record({
  passSeconds: fc.oneof(
    { weight: 3, arbitrary: fc.integer({ min: 1, max: 120 }) },
    { weight: 3, arbitrary: fc.integer({ min: 600, max: 3000 }) },
    { weight: 1, arbitrary: fc.integer({ min: 3000, max: 30_000 }) },
  ),
  lease: fc.integer({ min: 0, max: 4 }),
  does: fc.constantFrom('open', 'open', 'topUp', 'topUp', 'topUp', 'idle', 'end'),
  price: fc.integer({ min: 1, max: 3_000_000 }),
  gpus: fc.integer({ min: 1, max: 8 }),
  hours: fc.integer({ min: 1, max: 8 }),
  counts: fc.boolean(),
});
const amounts = fc.record({
  Hour: fc.option(fc.integer({ min: 0, max: 40 }), { nil: undefined }),
  Day: fc.option(fc.integer({ min: 0, max: 200 }), { nil: undefined }),
  Month: fc.integer({ min: 0, max: 600 }),
});

describe('under a budget', () => {
  it('no window is overspent, and each second is counted once', () => {
    let opened = 0;
    let refused = 0;
    let cut = 0;
    fc.assert(
      fc.property(fc.array(step, { minLength: 40, maxLength: 120 }), amounts, fc.boolean(), (steps, limits, idles) => {
        const spec = budgetWindows.flatMap((window) =>
          limits[window] === undefined ? [] : [{ window, amount: String(limits[window]) }],
        );
        let stored: GpuBudget = budget({ limits: spec });
        const records = new Map<string, LeaseRecord>();
        const idle = new Set<string>();
        /** By window and its start: atto tokens. */
        const book = new Map<string, bigint>();
        let now = 0;
        let made = 0;
        const uids: (string | undefined)[] = [];
        const count = () => {
          stored = { ...stored, status: reportBudget(stored, records, labelsOf, at(now)).status };
        };
        const serve = (seconds: number) => {
          for (const [uid, one] of records) {
            const { gpus, pricePerGpuHour, maxSeconds } = one.quote!.signed.quote;
            const price = BigInt(pricePerGpuHour);
            const paid = Math.min(maxSeconds, secondsFor(BigInt(one.deposit!), gpus, price));
            const more = idle.has(uid) ? 0 : Math.min(seconds, paid - one.signedSeconds);
            for (const window of budgetWindows) {
              // What is served is served first: then it waits for money.
              for (let done = 0; done < more; ) {
                const moment = t0 + now + done;
                const { startMs, endMs } = windowAt(window, new Date(moment * 1000));
                const part = Math.min(more - done, endMs / 1000 - moment);
                const bill =
                  priceOf(one.signedSeconds + done + part, gpus, price) -
                  priceOf(one.signedSeconds + done, gpus, price);
                const key = `${window} ${startMs}`;
                book.set(key, (book.get(key) ?? 0n) + bill * 10n ** 12n);
                done += part;
              }
            }
            const signedSeconds = one.signedSeconds + more;
            records.set(uid, {
              ...one,
              signedSeconds,
              // Once the money is used up the node is Ready still, and nothing more is signed for.
              meter: {
                servedMs: one.meter.servedMs + (idle.has(uid) ? 0 : seconds * 1000),
                countedUntil: instant(now + seconds),
              },
            });
          }
          now += seconds;
        };
        for (const { passSeconds, lease, does, price, gpus, hours, counts } of steps) {
          serve(passSeconds);
          if (counts) count();
          const uid = uids[lease];
          const see = (of: string) => viewBudgets(of, {}, [stored], records, labelsOf, at(now));
          if (does === 'open' && uid === undefined) {
            const quote = quoteRecord({ pricePerGpuHour: String(price), gpus, maxSeconds: hours * 3600 });
            const deposit = priceOf(Math.min(7200, hours * 3600), gpus, BigInt(price));
            const wish = record({ quote, deposit: String(deposit), lease: { namespace: 'ml', name: 'one' } });
            if (budgetRefusal(see(`new-${made}`), spenderOf(wish)!, at(now))) refused++;
            else {
              uids[lease] = `uid-${made++}`;
              records.set(uids[lease]!, wish);
              opened++;
            }
          } else if (does === 'topUp' && uid !== undefined) {
            const one = records.get(uid)!;
            // A lease whose money was used up is at its end, and gets no more.
            if (one.meter.servedMs > one.signedSeconds * 1000) continue;
            const more = priceOf(7200, gpus, BigInt(one.quote!.signed.quote.pricePerGpuHour));
            const { room } = budgetRoom(see(uid), spenderOf(one)!, more, at(now));
            if (room < more) cut++;
            const after = { ...one, deposit: String(BigInt(one.deposit!) + room) };
            records.set(uid, after);
            for (const limit of room > 0n ? see(uid)[0]!.limits : []) {
              const own = spenderOf(after)!;
              const present = limit.spent + limit.othersNow + spendableWithin(own, limit, at(now));
              expect(present).toBeLessThanOrEqual(limit.limit);
              const next = limit.othersNext + spendableIn(own, longestSeconds[limit.window]);
              expect(next).toBeLessThanOrEqual(limit.limit);
            }
          } else if (does === 'idle' && uid !== undefined && idles) {
            if (!idle.delete(uid)) idle.add(uid);
          } else if (does === 'end' && uid !== undefined) {
            // Counted before it is settled, as the controller does.
            count();
            records.delete(uid);
            uids[lease] = undefined;
          }
        }
        count();
        for (const [key, spent] of book) {
          const limit = limits[key.split(' ')[0] as 'Hour'];
          if (limit !== undefined) expect(spent, key).toBeLessThanOrEqual(parseAtto(String(limit)));
        }
        // Without idle times in between, each second is counted where it was served.
        if (!idles)
          for (const { window, startedAt, spent } of stored.status!.windows!) {
            const exact = book.get(`${window} ${new Date(startedAt).getTime()}`) ?? 0n;
            expect(parseAtto(spent), window).toBe(exact);
          }
      }),
      { numRuns: 1500, seed: 1 },
    );
    // The test reaches what it is about.
    expect({ opened: opened > 5000, refused: refused > 5000, cut: cut > 400 }, `${opened} ${refused} ${cut}`).toEqual({
      opened: true,
      refused: true,
      cut: true,
    });
  }, 60_000);
});
