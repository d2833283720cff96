import { describe, expect, test } from 'vitest';
import { type Observed, planAllocation } from '../../../../operator/core/allocation/plan.ts';
import { zeroAddress, zeroHash } from '../../../../operator/core/allocation/quote.ts';
import { type LeaseRecord, parseRecord, RecordError, recordText } from '../../../../operator/core/allocation/record.ts';
import { planSettlement, type SettlementRules } from '../../../../operator/core/allocation/settlement.ts';
import type { Escrow, EscrowReads } from '../../../../operator/core/money/escrow.ts';

const now = 10_000;
const record = (changes: Partial<LeaseRecord> = {}): LeaseRecord => ({
  version: 1,
  leaseId: zeroHash,
  chainId: 1,
  escrow: zeroAddress,
  quote: { maxSeconds: 3600, graceSeconds: 60, expiresAt: now - 100, token: zeroAddress } as LeaseRecord['quote'],
  quoteSignature: '0x',
  node: {} as LeaseRecord['node'],
  signer: zeroAddress,
  openedAt: now - 100,
  endsAt: now + 3600,
  room: { gpus: 1, cpuMillis: 1, memoryBytes: 1, ephemeralBytes: 1, pods: 1 },
  nodeName: 'n',
  state: 'Serving',
  createdAt: '',
  paidSeconds: 3600,
  meter: { unpaidSeconds: 0, creditedSeconds: 0, countedUntil: now - 1 },
  ...changes,
});
const escrow = (changes: Partial<Escrow> = {}): Escrow =>
  ({
    gpus: 1,
    pricePerGpuHour: 3600n,
    deposit: 3600n,
    maxSeconds: 3600,
    servedSeconds: 0,
    claimed: 0n,
    openedAt: now - 100,
    endsAt: now + 3600,
    closingAt: 0,
    closed: false,
    closeReason: 'Open',
    ...changes,
  }) as Escrow;
const seen = (changes: Partial<Observed> = {}): Observed => ({
  record: record(),
  chain: { known: true, escrow: escrow() },
  nodeReady: true,
  nowSeconds: now,
  ...changes,
});
const voucher = (servedSeconds: number, last = false) => ({ servedSeconds, last, signature: '0x' as const });

describe('an allocation', () => {
  test('goes on while it is paid', () => {
    expect(planAllocation(seen())).toMatchObject({ record: { state: 'Serving', meter: { unpaidSeconds: 1 } } });
    expect(planAllocation(seen()).action).toBeUndefined();
  });

  test.each<[string, Partial<Observed>, string, string]>([
    [
      'the consumer asks on chain',
      { chain: { known: true, escrow: escrow({ closingAt: now }) } },
      'Ending',
      'EscrowClosing',
    ],
    ['the escrow is closed', { chain: { known: true, escrow: escrow({ closed: true }) } }, 'Ending', 'EscrowClosed'],
    ['the term is over', { nowSeconds: now + 3600 }, 'Ending', 'Expired'],
    ['all seconds are vouched for', { record: record({ voucher: voucher(3600) }) }, 'Ending', 'Expired'],
    ['the last voucher came', { record: record({ voucher: voucher(5, true) }) }, 'Ending', 'Released'],
    [
      'it is not paid',
      { record: record({ meter: { unpaidSeconds: 60, creditedSeconds: 0, countedUntil: now - 1 } }) },
      'Suspended',
      'Unpaid',
    ],
  ])('stops when %s', (_name, changes, state, reason) => {
    expect(planAllocation(seen(changes))).toMatchObject({ record: { state, reason }, action: { do: 'tearDown' } });
  });

  test('a chain that does not answer stops nothing', () => {
    expect(planAllocation(seen({ chain: { known: false } })).record.state).toBe('Serving');
  });

  test('an escrow that vanished pays nothing any more: grace decides', () => {
    const paid = record({
      voucher: voucher(90),
      meter: { unpaidSeconds: 0, creditedSeconds: 90, countedUntil: now - 1 },
    });
    expect(planAllocation(seen({ record: paid, chain: { known: true, escrow: undefined } })).record).toMatchObject({
      state: 'Suspended',
      reason: 'Unpaid',
    });
  });

  test('vouchers beyond the deposit do not pay', () => {
    const poor = { known: true as const, escrow: escrow({ deposit: 30n }) };
    const { record: after } = planAllocation(seen({ record: record({ voucher: voucher(90) }), chain: poor }));
    expect(after.meter!.creditedSeconds).toBe(30);
  });

  test('is finished after a crash, or ended when there is nothing to finish', () => {
    const provisioning = record({ state: 'Provisioning', meter: undefined });
    expect(planAllocation(seen({ record: provisioning })).action).toEqual({ do: 'provision' });
    expect(
      planAllocation(seen({ record: provisioning, chain: { known: true, escrow: escrow({ closed: true }) } })),
    ).toMatchObject({
      record: { state: 'Ending' },
      action: { do: 'tearDown' },
    });
  });

  test('ends only when nothing is left, and stays suspended until the chain has closed it', () => {
    expect(planAllocation(seen({ record: record({ state: 'Ending' }) })).action).toEqual({ do: 'tearDown' });
    expect(planAllocation(seen({ record: record({ state: 'Ending', tornDown: true }) })).record.state).toBe('Ended');
    const suspended = record({ state: 'Suspended', tornDown: true, reason: 'Unpaid' });
    expect(planAllocation(seen({ record: suspended })).record.state).toBe('Suspended');
    expect(
      planAllocation(seen({ record: suspended, chain: { known: true, escrow: escrow({ closed: true }) } })).record
        .state,
    ).toBe('Ended');
  });

  test('the record survives being stored, and nothing else is taken for one', () => {
    expect(parseRecord(recordText(record()))).toEqual(record());
    for (const text of ['', 'null', '{}', '{"version":1}', '[]']) expect(() => parseRecord(text)).toThrow(RecordError);
  });
});

describe('what goes to the chain', () => {
  const rules: SettlementRules = {
    thresholdUnits: 1000n,
    intervalSeconds: 600,
    patienceSeconds: 60,
    claimWindowSeconds: 300,
  };
  const ended = (changes: Partial<LeaseRecord> = {}) =>
    record({
      state: 'Ended',
      tornDown: true,
      reason: 'Released',
      endedAt: new Date(now * 1000).toISOString(),
      ...changes,
    });

  test.each<[string, LeaseRecord, Escrow | undefined, number, string]>([
    ['nothing for a lease that just runs', record({ voucher: voucher(90) }), escrow(), now, 'wait'],
    [
      'a settlement once enough is earned',
      record({ voucher: voucher(1000) }),
      escrow({ openedAt: now - 2000 }),
      now,
      'settle',
    ],
    [
      'a settlement once enough time is',
      record({ voucher: voucher(600) }),
      escrow({ openedAt: now - 700 }),
      now,
      'settle',
    ],
    [
      'nothing before the tenant is gone',
      record({ state: 'Ending', voucher: voucher(90, true) }),
      escrow(),
      now,
      'wait',
    ],
    [
      'nothing before the pods of who did not pay are gone',
      record({ state: 'Suspended', reason: 'Unpaid', voucher: voucher(9) }),
      escrow(),
      now,
      'wait',
    ],
    ['a close with the last voucher', ended({ voucher: voucher(90, true) }), escrow(), now, 'close'],
    [
      'a settlement at once when the window runs',
      record({ state: 'Ending', voucher: voucher(90) }),
      escrow({ closingAt: now }),
      now,
      'settle',
    ],
    ['nothing while the consumer may still close', ended({ voucher: voucher(90) }), escrow(), now + 30, 'wait'],
    ['a settlement when it did not', ended({ voucher: voucher(90) }), escrow(), now + 61, 'settle'],
    [
      'nothing when all is settled and the term runs',
      ended({ voucher: voucher(90) }),
      escrow({ servedSeconds: 90, claimed: 90n }),
      now + 61,
      'wait',
    ],
    ['the end of an abandoned escrow', ended(), escrow(), now + 3600 + 302, 'finalize'],
    [
      'the provider’s own close when it had no room',
      ended({ reason: 'CapacityExhausted' }),
      escrow(),
      now + 61,
      'providerClose',
    ],
    [
      'first the voucher of who did not pay',
      record({ state: 'Suspended', tornDown: true, reason: 'Unpaid', voucher: voucher(9) }),
      escrow(),
      now,
      'settle',
    ],
    [
      'then the close',
      record({ state: 'Suspended', tornDown: true, reason: 'Unpaid', voucher: voucher(9) }),
      escrow({ servedSeconds: 9, claimed: 9n }),
      now,
      'providerClose',
    ],
    ['nothing more once it is closed', ended(), escrow({ closed: true }), now, 'forget'],
    ['nothing for an escrow that a reorganisation took', ended(), undefined, now - 101, 'wait'],
    ['nothing more when its quote has run out without it', ended(), undefined, now - 100, 'forget'],
  ])('%s', (_name, lease, onChain, at, wish) => {
    expect(planSettlement(lease, { latest: onChain, safe: onChain, safeBlockTime: at }, rules, at).do).toBe(wish);
  });

  const unpaid = record({ state: 'Suspended', tornDown: true, reason: 'Unpaid', voucher: voucher(9) });
  const settled = escrow({ servedSeconds: 9, claimed: 9n });
  test.each<[string, LeaseRecord, Pick<EscrowReads, 'latest' | 'safe'>, number, string]>([
    [
      'keeps a record whose close may be taken back',
      ended(),
      { latest: escrow({ closed: true }), safe: escrow() },
      now,
      'wait',
    ],
    [
      'keeps one whose opening and close both may be',
      ended(),
      { latest: escrow({ closed: true }), safe: undefined },
      now,
      'wait',
    ],
    ['does not give up what was settled a moment ago', unpaid, { latest: settled, safe: escrow() }, now, 'wait'],
    ['nor what was settled in an escrow that is that young', unpaid, { latest: settled, safe: undefined }, now, 'wait'],
    ['closes once the settlement is safe', unpaid, { latest: settled, safe: settled }, now, 'providerClose'],
    [
      'does not finalize over a settlement that may be taken back',
      ended({ voucher: voucher(9) }),
      { latest: settled, safe: escrow() },
      now + 3600 + 302,
      'wait',
    ],
    [
      'finalizes once it is safe',
      ended({ voucher: voucher(9) }),
      { latest: settled, safe: settled },
      now + 3600 + 302,
      'finalize',
    ],
    [
      'settles nothing twice because a node is behind',
      unpaid,
      { latest: escrow(), safe: settled },
      now,
      'providerClose',
    ],
    [
      'forgets nothing because a node knows no escrow',
      ended(),
      { latest: undefined, safe: escrow() },
      now + 1000,
      'wait',
    ],
    [
      'forgets what is closed, whatever a node that is behind says',
      ended(),
      { latest: escrow(), safe: escrow({ closed: true }) },
      now,
      'forget',
    ],
  ])('%s', (_name, lease, seen, at, wish) => {
    expect(planSettlement(lease, { ...seen, safeBlockTime: at }, rules, at).do).toBe(wish);
  });

  test('goes by the time of the safe block, not by ours, when an opening can no longer come', () => {
    const at = record().quote.expiresAt;
    const absent = (safeBlockTime: number) =>
      planSettlement(ended(), { latest: undefined, safe: undefined, safeBlockTime }, rules, at + 10_000).do;
    expect([absent(at - 1), absent(at)]).toEqual(['wait', 'forget']);
  });
});
