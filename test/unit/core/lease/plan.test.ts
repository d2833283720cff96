/** What is wished for, in every situation that a lease can be in. A row is a sentence: who reads the names reads the rules. */
import { describe, expect, it } from 'vitest';
import type { GpuBudget } from '../../../../operator/api/budget.ts';
import { finalizers } from '../../../../operator/api/labels.ts';
import type { Address } from '../../../../operator/api/messages.ts';
import { reportBudget } from '../../../../operator/core/budget/report.ts';
import { type BudgetView, viewBudgets } from '../../../../operator/core/budget/room.ts';
import type { Action } from '../../../../operator/core/lease/actions.ts';
import {
  type Ending,
  intents,
  type LeaseRecord,
  type Observed,
  type TxFact,
} from '../../../../operator/core/lease/observed.ts';
import { planLease } from '../../../../operator/core/lease/plan.ts';
import {
  allocated,
  at,
  budget,
  chain,
  escrow,
  factsOf,
  instant,
  lease,
  leaseId,
  node,
  observed,
  offer,
  provider,
  providerFact,
  quoteHash,
  quoteRecord,
  rail,
  record,
  settings,
  t0,
  token,
  tx,
} from '../../../support/builders.ts';

interface Expected {
  /** Of the condition Ready: where the lease stands. */
  readonly ready?: string;
  /** Stalled or Reconciling, or nothing when all is well. */
  readonly kstatus?: 'Stalled' | 'Reconciling' | undefined;
  /** What is wished for, in order; the whole of it. A row without it does not care. */
  readonly wishes?: readonly string[];
  readonly says?: string;
  /** Reason of LowFunds, and a part of what it says. */
  readonly low?: readonly [reason: string, says: string];
  /** At the latest. */
  readonly within?: number;
}
type Row = readonly [sentence: string, seen: Partial<Observed>, expected: Expected];

const inOther = ({ assetSymbol }: { assetSymbol: string }) => (assetSymbol === 'USDC' ? '' : ` in ${assetSymbol}`);
const wishesOf = (actions: readonly Action[]) =>
  actions.map((action) => {
    switch (action.do) {
      case 'openEscrow':
        return `openEscrow ${action.deposit}${action.way === 'Allowance' ? '' : ` by ${action.way}`}`;
      case 'approveToken':
        return `approveToken${action.amount === undefined ? '' : ` ${action.amount}`}`;
      case 'topUp':
        return `topUp ${action.amount} to ${action.total}`;
      case 'vouch':
        return `vouch ${action.seconds}${action.last ? ' last' : ''}`;
      case 'saveMeter':
      case 'markDrained':
        return `${action.do} ${action.meter.servedMs / 1000}`;
      case 'beginEnd':
        return `beginEnd ${action.why.reason}${action.why.retry ? ' and retry' : ''}`;
      case 'finish':
        return `finish ${action.why.reason}`;
      case 'nextAttempt':
        return `nextAttempt avoiding ${action.avoidSeconds} s`;
      case 'requestQuote':
        return `requestQuote ${action.candidates.map((c) => c.offer.metadata.name + inOther(c.rail)).join(' ')}`;
      case 'drainNode':
        return action.force ? 'drainNode by force' : 'drainNode';
      default:
        return action.do;
    }
  });

const otherToken: Address = `0x${'9'.repeat(40)}`;
const bothPrices = [
  { assetSymbol: 'USDC', perGpuHour: '0.36' },
  { assetSymbol: 'GPU', perGpuHour: '0.30' },
];
/** GPU is what it would rather pay with. */
const inBoth = {
  assetSymbol: 'GPU',
  maxPricePerGpuHour: '0.50',
  alternatives: [{ assetSymbol: 'USDC', maxPricePerGpuHour: '0.60', spendLimit: '0.2' }],
};
/** USDC on chain 31337, GPU on chain 31338; either may be silent. */
function onTwoRails(usdcSilent = false, gpuSilent = false, usdcMaxEscrow = '100') {
  const first = rail({ maxEscrow: usdcMaxEscrow });
  const second = rail({ chainId: 31338, token: otherToken, assetSymbol: 'GPU' });
  return factsOf(
    providerFact({
      provider: provider({ payment: { rails: [first, second] } }),
      rails: [
        { ...first, decimals: 6, silent: usdcSilent },
        { ...second, decimals: 18, silent: gpuSilent },
      ],
    }),
  );
}

function check(rows: readonly Row[]): void {
  it.each(rows)('%s', (_, situation, expected) => {
    const plan = planLease(observed(situation));
    const ready = plan.conditions.find((c) => c.type === 'Ready');
    if (expected.ready !== undefined) expect(`${ready?.status} ${ready?.reason}`).toBe(expected.ready);
    if ('kstatus' in expected)
      expect(plan.conditions.map((c) => c.type).filter((t) => t === 'Stalled' || t === 'Reconciling')).toEqual(
        expected.kstatus ? [expected.kstatus] : [],
      );
    if (expected.says !== undefined) expect(ready?.message).toContain(expected.says);
    const low = plan.conditions.find((c) => c.type === 'LowFunds');
    if ('low' in expected) {
      expect(low && `${low.status} ${low.reason}`).toBe(expected.low && `True ${expected.low[0]}`);
      if (expected.low) expect(low?.message).toContain(expected.low[1]);
    }
    if (expected.wishes) expect(wishesOf(plan.actions)).toEqual(expected.wishes);
    if (expected.within !== undefined) expect(plan.requeueAfterSeconds).toBeLessThanOrEqual(expected.within);
    // What holds of every plan.
    expect(plan.conditions.length).toBeLessThanOrEqual(8);
    for (const { reason, message } of plan.conditions) {
      expect(reason).toMatch(/^[A-Za-z]+$/);
      expect(message.length).toBeLessThanOrEqual(2048);
    }
  });
}

// The stages of a life, each with all that the former ones left behind.
const withQuote = (change: Partial<LeaseRecord> = {}) => record({ quote: quoteRecord(), ...change });
const quoted = (change: Partial<Observed> = {}): Partial<Observed> => ({
  record: withQuote(),
  chain: chain(0),
  now: at(1),
  ...change,
});
const openTx = (state: TxFact['state'], refused?: TxFact['refused']) => ({
  [intents.open(leaseId)]: tx(state, refused),
});
const paidRecord = (change: Partial<LeaseRecord> = {}) => withQuote({ deposit: '360000', ...change });
const funded = (change: Partial<Observed> = {}): Partial<Observed> => ({
  record: paidRecord(),
  chain: chain(5, { escrow: escrow(), txs: openTx('mined') }),
  now: at(5),
  ...change,
});
/** Ready since second 10; counted and vouched up to second `until`. */
const servingRecord = (until: number, change: Partial<LeaseRecord> = {}) =>
  paidRecord({
    startedAt: instant(10),
    meter: { servedMs: (until - 10) * 1000, countedUntil: instant(until) },
    signedSeconds: until - 10,
    vouchedSeconds: until - 10,
    ...change,
  });
const serving = (now: number, change: Partial<Observed> = {}): Partial<Observed> => ({
  record: servingRecord(now),
  chain: chain(now, { escrow: escrow(), txs: openTx('mined') }),
  allocation: allocated(),
  node: node(),
  now: at(now),
  ...change,
});
/** The budgets, as the lease meets them, with what it and others have. */
const under = (
  budgets: readonly GpuBudget[],
  now: number,
  own: LeaseRecord | undefined,
  ...others: readonly LeaseRecord[]
): readonly BudgetView[] => {
  const records = new Map(others.map((one, i) => [`other-${i}`, one]));
  if (own) records.set('lease-uid', own);
  const reported = budgets.map((one) => ({ ...one, status: reportBudget(one, records, () => ({}), at(now)).status }));
  return viewBudgets('lease-uid', {}, reported, records, () => ({}), at(now));
};
const perDay = (amount: string, onExceeded: 'Alert' | 'Deny' | 'Drain' = 'Deny') =>
  budget({ limits: [{ window: 'Day', amount }], onExceeded });
const deleted = { metadata: { deletionTimestamp: instant(0) } };
const ending = (change: Partial<Ending> = {}): Ending => ({
  reason: 'Released',
  message: 'the lease was deleted.',
  at: instant(100),
  retry: false,
  ...change,
});
const terminal = { name: 'LeaseExists', terminal: true, message: 'an escrow of this lease is there already' };
const retryable = { name: 'ChainBusy', terminal: false, message: 'try again' };

describe('before anything is promised', () => {
  check([
    [
      'takes its finalizer before the first outside effect',
      { lease: lease({}, { metadata: { finalizers: [] } }) },
      { wishes: ['addFinalizer'], within: 0 },
    ],
    [
      'does nothing for a lease that is being deleted and was never ours',
      { lease: lease({}, { metadata: { finalizers: ['other'], deletionTimestamp: instant(0) } }) },
      { wishes: [] },
    ],
    ['asks the best provider for a quote', {}, { ready: 'Unknown Quoting', wishes: ['requestQuote ams-rtx4090'] }],
    [
      'asks three providers at most, the cheapest first',
      {
        offers: ['0.5', '0.3', '0.4', '0.2'].map((perGpuHour, i) =>
          offer({ prices: [{ assetSymbol: 'USDC', perGpuHour }] }, {}, { name: `ams-${i}` }),
        ),
      },
      { wishes: ['requestQuote ams-3 ams-1 ams-2'] },
    ],
    [
      'waits while suspended, and asks nobody',
      { lease: lease({ suspend: true }) },
      { ready: 'False Suspended', kstatus: 'Stalled', wishes: [] },
    ],
    [
      'says why no offer will do',
      { offers: [] },
      { ready: 'Unknown NoMatchingOffer', kstatus: 'Reconciling', wishes: [], within: 30 },
    ],
    [
      'says that there is no provider at all',
      { offers: [], providers: factsOf() },
      { ready: 'Unknown NoMatchingOffer', says: 'No GpuProvider exists' },
    ],
    [
      'shows why the last round of quotes brought none, and asks again later',
      { refusals: [{ providerName: 'ams', reason: 'CapacityExhausted', message: 'the GPUs are gone' }] },
      {
        ready: 'Unknown CapacityExhausted',
        says: 'ams: the GPUs are gone',
        wishes: ['requestQuote ams-rtx4090'],
        within: 10,
      },
    ],
    [
      'refuses an approval of a quote that there is not',
      { lease: lease({ approval: 'Manual', approvedQuoteHash: quoteHash }) },
      { ready: 'False InvalidSpec', kstatus: 'Stalled', wishes: [] },
    ],
    [
      'asks again when the quote ran out before a deposit was decided',
      quoted({ now: at(116), chain: chain(116) }),
      { ready: 'Unknown Quoting', wishes: ['requestQuote ams-rtx4090'] },
    ],
    [
      'says that an approved quote ran out',
      quoted({ now: at(121), chain: chain(121), lease: lease({ approval: 'Manual', approvedQuoteHash: quoteHash }) }),
      { ready: 'False InvalidSpec', kstatus: 'Stalled', says: 'ran out before it was used', wishes: [] },
    ],
    [
      'asks nobody for what would not fit into its budget',
      { budgets: under([perDay('0.5')], 0, undefined, paidRecord()) },
      {
        ready: 'Unknown BudgetExceeded',
        kstatus: 'Reconciling',
        says: 'GpuBudget team allows 0.5 USDC a day: 0.36 are spent or committed, and this lease would commit 0.36. It fits when another lease ends',
        wishes: [],
        within: 30,
      },
    ],
    [
      'says that its budget allows fewer GPUs, before it looks whether anybody has them',
      {
        lease: lease({ gpu: { models: ['RTX4090'], count: 4, interconnect: 'Any' } }),
        budgets: under([budget({ limits: [], maxConcurrentGpus: 2 })], 0, undefined),
        offers: [],
      },
      { ready: 'False BudgetExceeded', kstatus: 'Stalled', says: 'allows 2 GPUs at a time', wishes: [] },
    ],
    [
      'says that its budget is used up, before it looks what would be cheap enough',
      { budgets: under([perDay('0.3')], 3010, undefined, servingRecord(3010)), now: at(3010), offers: [] },
      { ready: 'Unknown BudgetExceeded', says: '0.36 are spent or committed, so nothing is left. It fits', wishes: [] },
    ],
    [
      'says that its token is in no budget of its namespace',
      {
        lease: lease({ pricing: { maxPricePerGpuHour: '0.60', assetSymbol: 'GPU' } }),
        budgets: under([perDay('10')], 0, undefined),
      },
      { ready: 'False BudgetExceeded', kstatus: 'Stalled', says: 'the lease pays with GPU', wishes: [] },
    ],
    [
      'asks in its other token where its budget has none of the first',
      {
        lease: lease({ pricing: inBoth }),
        offers: [offer({ prices: bothPrices })],
        providers: onTwoRails(),
        budgets: under([perDay('10')], 0, undefined),
      },
      { ready: 'Unknown Quoting', wishes: ['requestQuote ams-rtx4090'] },
    ],
    [
      'asks elsewhere, when nothing was decided yet, where the chain of its quote does not answer',
      quoted({
        offers: [offer({ prices: bothPrices })],
        lease: lease({ pricing: inBoth }),
        providers: onTwoRails(true),
      }),
      {
        ready: 'Unknown Quoting',
        says: 'Chain 31337 does not answer',
        wishes: ['requestQuote ams-rtx4090 in GPU'],
        within: 0,
      },
    ],
    [
      'keeps its quote while its chain does not answer, once a deposit was decided',
      quoted({
        record: withQuote({ deposit: '360000' }),
        offers: [offer({ prices: bothPrices })],
        lease: lease({ pricing: inBoth }),
        providers: onTwoRails(true),
        chain: { state: 'unknown', reason: 'ChainUnreachable', message: 'no answer' },
      }),
      { ready: 'Unknown ChainUnreachable', wishes: [] },
    ],
    [
      'keeps its quote while its chain does not answer, where no other would do',
      quoted({
        lease: lease({ pricing: inBoth }),
        providers: onTwoRails(true, true),
        offers: [offer({ prices: bothPrices })],
        chain: { state: 'unknown', reason: 'ChainUnreachable', message: 'no answer' },
      }),
      { ready: 'Unknown ChainUnreachable', wishes: [] },
    ],
    [
      'asks for a quote on its other rail where maxEscrow of another has no room for its deposit',
      {
        lease: lease({ pricing: inBoth }),
        offers: [offer({ prices: bothPrices })],
        providers: onTwoRails(false, false, '0.19'),
      },
      { ready: 'Unknown Quoting', wishes: ['requestQuote ams-rtx4090 in GPU'] },
    ],
    [
      'asks for no quote where maxEscrow has no room on any rail, and says of which',
      { providers: onTwoRails(false, false, '0.35') },
      { ready: 'Unknown LimitReached', says: 'LimitReached (closest maxEscrow 0.35 USDC on chain 31337)', wishes: [] },
    ],
    [
      "asks in its other token where the operator's --max-escrow has no room for the first",
      {
        lease: lease({ pricing: inBoth }),
        offers: [offer({ prices: bothPrices })],
        providers: onTwoRails(),
        held: { onRail: 0n, inAsset: { GPU: 999_700_000n * 10n ** 12n + 1n } },
      },
      { ready: 'Unknown Quoting', wishes: ['requestQuote ams-rtx4090'] },
    ],
    [
      'asks for no quote that the cap of the operator has no room for',
      { held: { onRail: 0n, inAsset: { USDC: 999_640_000n * 10n ** 12n + 1n } } },
      { ready: 'Unknown LimitReached', says: "the operator's --max-escrow is 1000 USDC", wishes: [] },
    ],
    [
      'asks for a quote that just fits under the cap of the operator',
      { held: { onRail: 0n, inAsset: { USDC: 999_640_000n * 10n ** 12n } } },
      { ready: 'Unknown Quoting', wishes: ['requestQuote ams-rtx4090'] },
    ],
    [
      'asks for no quote in a token for which the operator has no cap',
      { settings: settings({ maxEscrow: () => undefined }) },
      { ready: 'Unknown LimitReached', says: '--max-escrow USDC=AMOUNT', wishes: [] },
    ],
    [
      'asks elsewhere, when nothing was decided yet, where other leases have filled the rail of its quote',
      quoted({
        offers: [offer({ prices: bothPrices })],
        lease: lease({ pricing: inBoth }),
        providers: onTwoRails(),
        held: { onRail: 99_800_001n, inAsset: {} },
      }),
      {
        ready: 'Unknown Quoting',
        says: 'Other leases have filled maxEscrow of ams on chain 31337',
        wishes: ['requestQuote ams-rtx4090 in GPU'],
        within: 0,
      },
    ],
    [
      'opens what just fits into maxEscrow of its rail',
      quoted({
        offers: [offer({ prices: bothPrices })],
        lease: lease({ pricing: inBoth }),
        providers: onTwoRails(),
        held: { onRail: 99_800_000n, inAsset: {} },
      }),
      { wishes: ['openEscrow 200000'] },
    ],
    [
      'waits for room, and asks nobody else, where its rail was filled after its deposit was decided',
      quoted({
        record: withQuote({ deposit: '360000' }),
        offers: [offer({ prices: bothPrices })],
        lease: lease({ pricing: inBoth }),
        providers: onTwoRails(),
        held: { onRail: 99_800_001n, inAsset: {} },
      }),
      { ready: 'Unknown LimitReached', wishes: [] },
    ],
    [
      'waits for a person where its budget can never hold it',
      { budgets: under([perDay('0.3')], 0, undefined) },
      { ready: 'False BudgetExceeded', kstatus: 'Stalled', says: 'Raise its limit, or ask for fewer', wishes: [] },
    ],
    [
      'asks for a quote under a budget that only alerts',
      { budgets: under([perDay('0.3', 'Alert')], 0, undefined) },
      { wishes: ['requestQuote ams-rtx4090'] },
    ],
    [
      'asks anew when an offer has become cheaper than the quote for which nothing was decided yet',
      quoted({ offers: [offer({ prices: [{ assetSymbol: 'USDC', perGpuHour: '0.35' }] })] }),
      { ready: 'Unknown Quoting', says: 'The price has fallen since ams quoted', wishes: ['requestQuote ams-rtx4090'] },
    ],
    [
      'keeps to its quote when offers have become dearer',
      quoted({ offers: [offer({ prices: [{ assetSymbol: 'USDC', perGpuHour: '0.59' }] })] }),
      { wishes: ['openEscrow 360000'] },
    ],
    [
      'keeps to its quote once a deposit was decided, whatever offers cost',
      quoted({
        record: withQuote({ deposit: '360000' }),
        offers: [offer({ prices: [{ assetSymbol: 'USDC', perGpuHour: '0.01' }] })],
      }),
      { wishes: ['openEscrow 360000'] },
    ],
    [
      'keeps to the quote that a person is asked to approve',
      quoted({
        lease: lease({ approval: 'Manual' }),
        offers: [offer({ prices: [{ assetSymbol: 'USDC', perGpuHour: '0.01' }] })],
      }),
      { ready: 'False AwaitingApproval', wishes: [] },
    ],
    [
      'asks nobody for a cheaper one while suspended',
      quoted({
        lease: lease({ suspend: true }),
        offers: [offer({ prices: [{ assetSymbol: 'USDC', perGpuHour: '0.01' }] })],
      }),
      { ready: 'False Suspended', wishes: [] },
    ],
    [
      'keeps to its quote when the cheaper one was not to be had',
      quoted({
        offers: [offer({ prices: [{ assetSymbol: 'USDC', perGpuHour: '0.01' }] })],
        refusals: [{ providerName: 'ams', reason: 'CapacityExhausted', message: 'gone' }],
      }),
      { wishes: ['openEscrow 360000'] },
    ],
    [
      'avoids a provider that failed just now',
      { record: record({ attempt: 2, avoid: [{ providerName: 'ams', until: at(60).getTime() }] }) },
      { ready: 'Unknown BackingOff', wishes: [] },
    ],
  ]);
});

describe('money', () => {
  check([
    [
      'opens the escrow with the whole price of a short term',
      quoted(),
      { ready: 'Unknown EscrowPending', wishes: ['openEscrow 360000'] },
    ],
    [
      'deposits two hours of a long term',
      quoted({ record: record({ quote: quoteRecord({ maxSeconds: 86_400 }) }) }),
      { wishes: ['openEscrow 720000'] },
    ],
    [
      'deposits no more than the spend limit',
      quoted({ lease: lease({ pricing: { maxPricePerGpuHour: '0.60', spendLimit: '0.1', assetSymbol: 'USDC' } }) }),
      { wishes: ['openEscrow 100000'] },
    ],
    [
      'says when the spend limit buys less than the shortest lease',
      quoted({ lease: lease({ pricing: { maxPricePerGpuHour: '0.60', spendLimit: '0.005', assetSymbol: 'USDC' } }) }),
      { ready: 'False InvalidSpec', kstatus: 'Stalled', says: 'at least 0.006 USDC is needed', wishes: [] },
    ],
    [
      'keeps to the deposit that was stored first',
      quoted({ record: withQuote({ deposit: '123456' }) }),
      { wishes: ['openEscrow 123456'] },
    ],
    [
      'deposits no more than is allowed in the token that it pays with, be that an alternative',
      quoted({ lease: lease({ pricing: inBoth }), providers: onTwoRails(), offers: [] }),
      { wishes: ['openEscrow 200000'] },
    ],
    [
      'allows the contract to take the token first',
      quoted({ chain: chain(0, { wallet: { allowance: 0n } }) }),
      { ready: 'Unknown EscrowPending', wishes: ['approveToken'] },
    ],
    [
      'signs the allowance into the opening where the token can: one transaction, not two',
      quoted({ chain: chain(0, { wallet: { allowance: 0n, signs: { permit: true, authorization: true } } }) }),
      { ready: 'Unknown EscrowPending', wishes: ['openEscrow 360000 by Permit'] },
    ],
    [
      'opens by the allowance that stands, whatever could be signed',
      quoted({ chain: chain(0, { wallet: { signs: { permit: true, authorization: true } } }) }),
      { wishes: ['openEscrow 360000'] },
    ],
    [
      'leaves no allowance where none may stand: signs for this deposit alone',
      quoted({
        chain: chain(0, { wallet: { allowance: 0n, signs: { permit: true, authorization: true } } }),
        settings: settings({ allowance: 'PerDeposit' }),
      }),
      { wishes: ['openEscrow 360000 by Authorization'] },
    ],
    [
      'approves this deposit alone where none may stand and the token takes no signature for one',
      quoted({
        chain: chain(0, { wallet: { allowance: 0n, signs: { permit: true, authorization: false } } }),
        settings: settings({ allowance: 'PerDeposit' }),
      }),
      { wishes: ['approveToken 360000'] },
    ],
    [
      'sends an approval when an opening with a signature in it was refused, for good or for now',
      quoted({
        record: paidRecord(),
        chain: chain(0, {
          wallet: { allowance: 0n, signs: { permit: true, authorization: true } },
          txs: openTx('refused', terminal),
        }),
      }),
      { ready: 'Unknown EscrowPending', wishes: ['approveToken'] },
    ],
    [
      'waits for an approval that is under way, and signs nothing beside it',
      quoted({
        chain: chain(0, {
          wallet: { allowance: 0n, signs: { permit: true, authorization: true } },
          txs: { [intents.approve(31337, token)]: tx('broadcast') },
        }),
      }),
      { ready: 'Unknown EscrowPending', wishes: ['approveToken'] },
    ],
    [
      'shows why the allowance was refused',
      quoted({
        chain: chain(0, {
          wallet: { allowance: 0n },
          txs: { [intents.approve(31337, token)]: tx('refused', { ...retryable, name: 'OpensArePaused' }) },
        }),
      }),
      { ready: 'Unknown TransactionFailed', says: 'OpensArePaused' },
    ],
    [
      'waits for gas when there is too little for the allowance, and tries again now and then',
      quoted({
        chain: chain(0, {
          wallet: { allowance: 0n },
          txs: { [intents.approve(31337, token)]: tx('refused', { ...retryable, name: 'PayerOutOfGas' }) },
        }),
      }),
      { ready: 'False InsufficientFunds', kstatus: 'Stalled', says: 'PayerOutOfGas', wishes: ['approveToken'] },
    ],
    [
      'waits for gas when there is too little to open, and tries again now and then',
      quoted({ chain: chain(0, { txs: openTx('refused', { ...retryable, name: 'PayerOutOfGas' }) }) }),
      { ready: 'False InsufficientFunds', kstatus: 'Stalled', says: 'PayerOutOfGas', wishes: ['openEscrow 360000'] },
    ],
    [
      'waits for gas when what is signed cannot be paid for any more, and wishes for nothing twice',
      quoted({
        chain: chain(0, { txs: { [intents.open(leaseId)]: { ...tx('stored'), problem: 'PayerOutOfGas' } } }),
      }),
      { ready: 'False InsufficientFunds', kstatus: 'Stalled', says: 'PayerOutOfGas', wishes: [] },
    ],
    [
      'says that a transaction is stuck at the highest fee, and waits',
      quoted({
        chain: chain(0, { txs: { [intents.open(leaseId)]: { ...tx('broadcast'), problem: 'FeeCapReached' } } }),
      }),
      { ready: 'Unknown EscrowPending', says: 'highest fee', wishes: [] },
    ],
    [
      'waits for a person to approve the quote, and says what it costs',
      quoted({ lease: lease({ approval: 'Manual' }) }),
      {
        ready: 'False AwaitingApproval',
        kstatus: 'Stalled',
        says: `0.36 USDC/h, 0.36 USDC for 3600 s with ams; 0.36 USDC are locked at a time at most. Approve: set spec.approvedQuoteHash to ${quoteHash}.`,
        wishes: [],
      },
    ],
    [
      'opens when the quote was approved, in whatever case the hash is written',
      quoted({
        lease: lease({ approval: 'Manual', approvedQuoteHash: quoteHash.toUpperCase().replace('0X', '0x') }),
      }),
      { wishes: ['openEscrow 360000'] },
    ],
    [
      'opens nothing when another quote was approved',
      quoted({ lease: lease({ approval: 'Manual', approvedQuoteHash: `0x${'f'.repeat(64)}` }) }),
      { ready: 'False InvalidSpec', kstatus: 'Stalled', wishes: [] },
    ],
    [
      'opens nothing when it was suspended after the quote',
      quoted({ lease: lease({ suspend: true }) }),
      { ready: 'False Suspended', kstatus: 'Stalled', wishes: [] },
    ],
    [
      'opens nothing when it was suspended between the decision and the transaction',
      quoted({ lease: lease({ suspend: true }), record: paidRecord() }),
      { ready: 'False Suspended', wishes: [] },
    ],
    [
      'opens nothing with a provider that is held since the quote',
      quoted({ providers: factsOf(providerFact({ provider: provider({ stopPolicy: 'Hold' }) })) }),
      { ready: 'Unknown ProviderHeld', wishes: [] },
    ],
    [
      'opens nothing with a provider that is being deleted',
      quoted({
        providers: factsOf(providerFact({ provider: provider({}, { deletionTimestamp: instant(0) }) })),
      }),
      { ready: 'Unknown ProviderHeld', says: 'being deleted', wishes: [] },
    ],
    [
      'opens nothing with a provider that is to be drained',
      quoted({ providers: factsOf(providerFact({ provider: provider({ stopPolicy: 'HoldAndDrain' }) })) }),
      { ready: 'Unknown ProviderHeld', wishes: [] },
    ],
    [
      'opens nothing with a provider that was deleted since the quote',
      quoted({ providers: factsOf() }),
      { ready: 'Unknown ProviderUnreachable', says: 'GpuProvider ams was deleted', wishes: [] },
    ],
    [
      'opens nothing on a rail that was taken from the provider since the quote',
      quoted({
        providers: factsOf(providerFact({ provider: provider({ payment: { rails: [rail({ chainId: 1 })] } }) })),
      }),
      { ready: 'Unknown LimitReached', says: 'no longer lists the rail', wishes: [] },
    ],
    [
      'opens nothing when other leases have filled limits.leases since the quote',
      quoted({
        providers: factsOf(
          providerFact({
            provider: provider({ limits: { leases: 1 } }),
            held: { leases: 1, gpus: 1, perHour: {}, locked: {} },
          }),
        ),
      }),
      { ready: 'Unknown LimitReached', says: 'limits.leases 1', wishes: [] },
    ],
    [
      'opens nothing above limits.spendPerHour',
      quoted({ providers: factsOf(providerFact({ provider: provider({ limits: { spendPerHour: '0.35' } }) })) }),
      { ready: 'Unknown LimitReached', says: 'limits.spendPerHour 0.35', wishes: [] },
    ],
    [
      'counts the limit of the rail that was quoted, not of another one in the same token',
      quoted({
        providers: factsOf(
          providerFact({
            provider: provider({ payment: { rails: [rail({ chainId: 1, maxEscrow: '0.01' }), rail()] } }),
          }),
        ),
      }),
      { wishes: ['openEscrow 360000'] },
    ],
    [
      'opens nothing that its budget has no room for, and says when it has',
      quoted({
        budgets: under([perDay('0.5')], 85_000, undefined, servingRecord(5000)),
        now: at(85_000),
        record: withQuote({ quote: quoteRecord({ expiresAt: t0 + 85_100 }) }),
        chain: chain(85_000),
      }),
      {
        ready: 'Unknown BudgetExceeded',
        says: 'It fits at 2026-01-02T00:00:00Z, when the day is over',
        wishes: [],
        within: 30,
      },
    ],
    [
      'opens what fits into its budget',
      quoted({ budgets: under([perDay('0.72')], 0, undefined, paidRecord()) }),
      { wishes: ['openEscrow 360000'] },
    ],
    [
      'opens what was decided already, though its budget is full by now',
      quoted({ record: paidRecord(), budgets: under([perDay('0.1')], 0, paidRecord(), paidRecord()) }),
      { wishes: ['openEscrow 360000'] },
    ],
    [
      'names its budget before the limits of its provider',
      quoted({
        budgets: under([perDay('0.5')], 0, undefined, paidRecord()),
        held: { onRail: 99_700_000n, inAsset: {} },
      }),
      { ready: 'Unknown BudgetExceeded' },
    ],
    [
      'opens nothing above maxEscrow of the provider',
      quoted({ held: { onRail: 99_700_000n, inAsset: {} } }),
      { ready: 'Unknown LimitReached', says: 'its maxEscrow is 100 USDC', wishes: [], within: 30 },
    ],
    [
      'opens nothing above the cap of the operator',
      quoted({ held: { onRail: 0n, inAsset: { USDC: 10n ** 21n } } }),
      { ready: 'Unknown LimitReached', says: "the operator's --max-escrow is 1000 USDC", wishes: [] },
    ],
    [
      'opens nothing in a token for which the operator has no cap',
      quoted({ settings: settings({ maxEscrow: () => undefined }) }),
      { ready: 'Unknown LimitReached', says: '--max-escrow USDC=AMOUNT', wishes: [] },
    ],
    [
      'says how much the wallet lacks',
      quoted({ chain: chain(0, { wallet: { balance: 350_000n } }) }),
      { ready: 'False InsufficientFunds', kstatus: 'Stalled', says: 'Send it 0.01 USDC more', wishes: [] },
    ],
    [
      'says that the wallet has no gas',
      quoted({ chain: chain(0, { wallet: { gas: 0n } }) }),
      { ready: 'False InsufficientFunds', kstatus: 'Stalled', says: 'PayerOutOfGas', wishes: [] },
    ],
    ...(['stored', 'broadcast', 'mined'] as const).map(
      (state): Row => [
        `waits while the opening transaction is ${state}`,
        quoted({ record: paidRecord(), chain: chain(0, { txs: openTx(state) }) }),
        { ready: 'Unknown EscrowPending', wishes: [] },
      ],
    ),
    [
      'does not open again when the opening was reverted, but when its quote has run out',
      quoted({ record: paidRecord(), chain: chain(0, { txs: openTx('reverted') }) }),
      { ready: 'Unknown TransactionFailed', wishes: [] },
    ],
    [
      'waits for a person when the contract refuses for good',
      quoted({ record: paidRecord(), chain: chain(0, { txs: openTx('refused', terminal) }) }),
      { ready: 'False TransactionFailed', kstatus: 'Stalled', says: 'LeaseExists', wishes: [] },
    ],
    [
      'tries again when the contract refuses for now',
      quoted({ record: paidRecord(), chain: chain(0, { txs: openTx('refused', retryable) }) }),
      { ready: 'Unknown TransactionFailed', kstatus: 'Reconciling', wishes: ['openEscrow 360000'] },
    ],
    [
      'allows the token again when an opening was refused because the allowance was taken back',
      quoted({
        record: paidRecord(),
        chain: chain(0, { wallet: { allowance: 1n }, txs: openTx('refused', retryable) }),
      }),
      { wishes: ['approveToken'] },
    ],
    [
      'asks anew when the quote has run out at the safe head without an escrow',
      quoted({ record: paidRecord(), now: at(130), chain: chain(130, { safe: { blockTime: t0 + 120 } }) }),
      { ready: 'Unknown BackingOff', wishes: ['nextAttempt avoiding 0 s'], within: 0 },
    ],
    [
      'asks nobody while the opening may still be mined: the safe head is before the quote ran out',
      quoted({
        record: paidRecord(),
        now: at(130),
        chain: chain(130, { safe: { blockTime: t0 + 119 }, txs: openTx('broadcast') }),
      }),
      { ready: 'Unknown EscrowPending', wishes: [] },
    ],
    [
      'says that an escrow was opened with another quote, and touches it not',
      quoted({ record: paidRecord(), chain: chain(5, { escrow: escrow({ quoteHash: `0x${'f'.repeat(64)}` }) }) }),
      { ready: 'False TransactionFailed', kstatus: 'Stalled', wishes: [] },
    ],
    [
      'does nothing while the chain cannot be read',
      quoted({ chain: { state: 'unknown', reason: 'ChainUnreachable', message: 'no answer' } }),
      { ready: 'Unknown ChainUnreachable', kstatus: 'Reconciling', wishes: [] },
    ],
    [
      'does nothing on a wrong chain, and says so',
      quoted({ chain: { state: 'unknown', reason: 'WrongChain', message: 'it is chain 5' } }),
      { ready: 'Unknown WrongChain', says: 'it is chain 5', wishes: [] },
    ],
    [
      'does nothing before the chain was read',
      quoted({ chain: undefined }),
      { ready: 'Unknown ChainUnreachable', wishes: [] },
    ],
  ]);
});

describe('hardware', () => {
  const provisioning = (allocation: Observed['allocation'], change: Partial<Observed> = {}) =>
    funded({ allocation, ...change });
  check([
    ['asks for it only when the escrow is open', quoted(), { wishes: ['openEscrow 360000'] }],
    ['asks for it when the escrow is open', funded(), { ready: 'Unknown Provisioning', wishes: ['allocate'] }],
    [
      'asks again while the provider has none, and says what it says',
      provisioning({ state: 'absent', reason: 'EscrowNotFound', message: 'no such escrow yet' }),
      { ready: 'Unknown Provisioning', says: 'no such escrow yet', wishes: ['allocate'] },
    ],
    [
      'says that the GPUs are gone',
      provisioning({ state: 'absent', reason: 'CapacityExhausted', message: 'the GPUs are gone' }),
      { ready: 'Unknown CapacityExhausted', wishes: ['allocate'] },
    ],
    [
      'goes to another provider when the GPUs stay gone',
      provisioning(
        { state: 'absent', reason: 'CapacityExhausted', message: 'the GPUs are gone' },
        { now: at(20), chain: chain(20, { escrow: escrow() }) },
      ),
      { ready: 'False Releasing', wishes: ['beginEnd ProviderFault and retry'], within: 0 },
    ],
    [
      'waits for a provider that does not answer, and asks nothing twice',
      provisioning({ state: 'unknown', message: 'no answer in time' }),
      { ready: 'Unknown ProviderUnreachable', says: 'no answer in time', wishes: [] },
    ],
    [
      'waits while the tenant is made',
      provisioning(allocated({ state: 'Provisioning', message: 'making the namespace' })),
      { ready: 'Unknown Provisioning', says: 'making the namespace', wishes: ['allocate'] },
    ],
    [
      'makes the node when the provider serves',
      provisioning(allocated()),
      { ready: 'Unknown NodeNotReady', wishes: ['startNode'] },
    ],
    [
      'waits for the node to be Ready',
      provisioning(allocated(), { node: node(5, { ready: 'False', message: 'kubelet is starting' }) }),
      { ready: 'Unknown NodeNotReady', says: 'kubelet is starting', wishes: ['startNode'], within: 1 },
    ],
    [
      'bills from when the node was Ready, and vouches at once for what has passed',
      provisioning(allocated(), { node: node(8), now: at(10), chain: chain(10, { escrow: escrow() }) }),
      { ready: 'True Serving', kstatus: undefined, wishes: ['startNode', 'markStarted', 'vouch 2'] },
    ],
    [
      'gives up a provider that ended it before it ran',
      provisioning(allocated({ state: 'Ended', reason: 'CapacityLost' })),
      { wishes: ['beginEnd ProviderFault and retry'] },
    ],
    [
      'gives up a provider that was too slow, and tries another one',
      provisioning(allocated({ state: 'Provisioning' }), { now: at(900), chain: chain(900, { escrow: escrow() }) }),
      { wishes: ['beginEnd ProviderFault and retry'], says: 'StartTimeout' },
    ],
    [
      'is patient until the start timeout',
      provisioning(allocated({ state: 'Provisioning' }), { now: at(899), chain: chain(899, { escrow: escrow() }) }),
      { ready: 'Unknown Provisioning' },
    ],
    [
      'ends a lease whose provider is to be drained',
      provisioning(allocated(), {
        providers: factsOf(providerFact({ provider: provider({ stopPolicy: 'HoldAndDrain' }) })),
      }),
      { wishes: ['beginEnd ProviderHeld'] },
    ],
  ]);
});

describe('service', () => {
  const long = { maxSeconds: 86_400, deposit: 720_000n };
  const longRecord = (until: number, change: Partial<LeaseRecord> = {}) =>
    servingRecord(until, { quote: quoteRecord({ maxSeconds: 86_400 }), deposit: '720000', ...change });
  const longLease = lease({ term: { durationSeconds: 86_400 } });
  /** Two hours are paid of a day; 5500 s were served, so less than half an hour is left. */
  const low = (change: Partial<Observed> = {}, more: Partial<Parameters<typeof chain>[1]> = {}): Partial<Observed> => ({
    lease: longLease,
    record: longRecord(5510),
    chain: chain(5510, { escrow: escrow(long), ...more }),
    allocation: allocated(),
    node: node(),
    now: at(5510),
    ...change,
  });

  check([
    [
      'does nothing more than serve until a voucher is due',
      serving(70, { now: at(100), chain: chain(100, { escrow: escrow() }) }),
      { ready: 'True Serving', kstatus: undefined, wishes: ['startNode'], within: 30 },
    ],
    [
      'vouches once a minute for all that was served',
      serving(70, { now: at(130), chain: chain(130, { escrow: escrow() }) }),
      { ready: 'True Serving', wishes: ['startNode', 'vouch 120'], within: 60 },
    ],
    [
      'signs for no second that the chain has not seen pass',
      serving(70, { now: at(130), chain: chain(100, { escrow: escrow() }) }),
      { wishes: ['startNode', 'vouch 100'] },
    ],
    [
      'signs for no second that its own clock has not seen pass',
      serving(70, { now: at(130), chain: chain(500, { escrow: escrow() }) }),
      { wishes: ['startNode', 'vouch 120'] },
    ],
    [
      'signs for no second that the deposit does not pay',
      serving(70, { now: at(130), chain: chain(130, { escrow: escrow({ deposit: 11_000n }) }) }),
      { wishes: ['beginEnd InsufficientFunds'] },
    ],
    [
      'signs for none less than was signed before',
      serving(130, {
        record: servingRecord(70, { signedSeconds: 90 }),
        now: at(130),
        chain: chain(80, { escrow: escrow() }),
      }),
      { wishes: ['startNode', 'vouch 90'] },
    ],
    [
      'stores the count when there is nothing new to sign',
      serving(70, { now: at(130), chain: chain(60, { escrow: escrow() }) }),
      { wishes: ['startNode', 'saveMeter 120'] },
    ],
    [
      'vouches three times within the grace of a dear lease',
      serving(70, {
        record: servingRecord(70, { quote: quoteRecord({ graceSeconds: 51 }) }),
        now: at(87),
        chain: chain(87, { escrow: escrow() }),
      }),
      { wishes: ['startNode', 'vouch 77'], within: 17 },
    ],
    [
      'stores the count when the node has stopped being Ready, lest a second change hide it',
      serving(70, { now: at(90), node: node(80, { ready: 'False' }), chain: chain(90, { escrow: escrow() }) }),
      { ready: 'Unknown NodeNotReady', wishes: ['startNode', 'saveMeter 70'] },
    ],
    [
      'bills nothing while the node is not Ready',
      serving(70, {
        record: servingRecord(70, { meter: { servedMs: 60_000, countedUntil: instant(70), ready: false } }),
        now: at(130),
        node: node(60, { ready: 'Unknown' }),
        chain: chain(130, { escrow: escrow() }),
      }),
      { ready: 'Unknown NodeNotReady', wishes: ['startNode', 'saveMeter 60'] },
    ],
    [
      'goes on while the provider does not answer',
      serving(70, {
        allocation: { state: 'unknown', message: 'no answer' },
        now: at(130),
        chain: chain(130, { escrow: escrow() }),
      }),
      { wishes: ['startNode', 'vouch 120'] },
    ],
    [
      'goes on, and vouches, while the chain cannot be read',
      serving(70, {
        now: at(130),
        chain: {
          state: 'unknown',
          reason: 'ChainUnreachable',
          message: 'no answer',
          last: { escrow: escrow(), blockTime: t0 + 70, ageSeconds: 60 },
        },
      }),
      { ready: 'True Serving', wishes: ['startNode', 'vouch 120'] },
    ],
    [
      'vouches for no more than the last read pays, while the chain cannot be read',
      serving(70, {
        now: at(130),
        chain: {
          state: 'unknown',
          reason: 'ChainUnreachable',
          message: 'no answer',
          last: { escrow: escrow({ deposit: 10_000n }), blockTime: t0 + 70, ageSeconds: 60 },
        },
      }),
      { wishes: ['startNode', 'vouch 100'] },
    ],
    [
      'signs nothing new when it never read the chain since it started',
      serving(70, { now: at(130), chain: { state: 'unknown', reason: 'ChainUnreachable', message: 'no answer' } }),
      { ready: 'True Serving', wishes: ['startNode', 'saveMeter 120'] },
    ],
    ['tops the deposit up when half an hour is left', low(), { wishes: ['startNode', 'topUp 550000 to 1270000'] }],
    [
      'tops up when the token is allowed',
      low({}, { wallet: { allowance: 1n } }),
      { wishes: ['startNode', 'approveToken'] },
    ],
    [
      'approves a top-up by itself where no allowance may stand',
      low({ settings: settings({ allowance: 'PerDeposit' }) }, { wallet: { allowance: 1n } }),
      { wishes: ['startNode', 'approveToken 550000'] },
    ],
    [
      'tops up once: not while one is on its way, though a later second would want more',
      low(
        { record: longRecord(5510, { deposit: '1269900' }) },
        { txs: { [intents.topUp(leaseId, 1_269_900n)]: tx('broadcast') } },
      ),
      { wishes: ['startNode'] },
    ],
    [
      'tops up again when the former one was refused',
      low(
        { record: longRecord(5510, { deposit: '1269900' }) },
        { txs: { [intents.topUp(leaseId, 1_269_900n)]: tx('refused') } },
      ),
      { wishes: ['startNode', 'topUp 550000 to 1270000'] },
    ],
    [
      'tops up only as far as maxEscrow of the provider allows',
      low({
        providers: factsOf(providerFact({ provider: provider({ payment: { rails: [rail({ maxEscrow: '1' })] } }) })),
      }),
      { wishes: ['startNode', 'topUp 280000 to 1000000'] },
    ],
    [
      'tops up only as far as the operator may',
      low({ settings: settings({ maxEscrow: () => 900_000n }) }),
      { wishes: ['startNode', 'topUp 180000 to 900000'] },
    ],
    [
      'tops up only as far as the wallet reaches',
      low({}, { wallet: { balance: 7n } }),
      { wishes: ['startNode', 'topUp 7 to 720007'] },
    ],
    [
      'tops nothing up from an empty wallet, and tells people that money runs out',
      low({}, { wallet: { balance: 0n } }),
      {
        ready: 'True Serving',
        wishes: ['startNode', 'tellLow'],
        low: ['InsufficientFunds', 'is out of USDC. Send it some.'],
      },
    ],
    [
      'tells it once',
      low({ record: longRecord(5510, { lowFundsAt: instant(5500) }) }, { wallet: { balance: 0n } }),
      { wishes: ['startNode'], low: ['InsufficientFunds', 'less than 1800 s more'] },
    ],
    ['says what else it lacks: gas', low({}, { wallet: { gas: 0n } }), { low: ['InsufficientFunds', 'is out of gas'] }],
    [
      'says which limit stands in the way',
      low({ settings: settings({ maxEscrow: () => 720_000n }) }),
      { wishes: ['startNode', 'tellLow'], low: ['LimitReached', '--max-escrow of USDC is reached'] },
    ],
    [
      'tops up only as far as its budget allows',
      low({ budgets: under([perDay('1')], 5510, longRecord(5510)) }),
      { wishes: ['startNode', 'topUp 280000 to 1000000'], low: undefined },
    ],
    [
      'says that its budget allows no more',
      low({ budgets: under([perDay('0.72')], 5510, longRecord(5510)) }),
      {
        ready: 'True Serving',
        wishes: ['startNode', 'tellLow'],
        low: [
          'BudgetExceeded',
          'GpuBudget team allows 0.72 USDC a day, and it is spent or committed; the next one begins at',
        ],
      },
    ],
    [
      'says so while its budget is exceeded and leases are about to be drained',
      serving(70, {
        budgets: under([perDay('0.005', 'Drain')], 70, servingRecord(70)),
      }),
      {
        ready: 'True Serving',
        wishes: ['startNode', 'tellLow'],
        low: ['BudgetExceeded', '0.005 USDC a day are spent'],
      },
    ],
    [
      'goes on, and says so, when money came in time',
      low(
        { record: longRecord(5510, { lowFundsAt: instant(5500) }) },
        { escrow: escrow({ ...long, deposit: 1_270_000n }) },
      ),
      { ready: 'True Serving', wishes: ['startNode', 'tellFunded'], low: undefined },
    ],
    [
      'does not take it back while the chain cannot be read',
      low({
        record: longRecord(5510, { lowFundsAt: instant(5500) }),
        chain: { state: 'unknown', reason: 'ChainUnreachable', message: 'no answer' },
      }),
      { ready: 'True Serving', wishes: ['startNode'] },
    ],
    [
      'does not say so before the money is in the escrow',
      low(
        { record: longRecord(5510, { lowFundsAt: instant(5500), deposit: '1270000' }) },
        { txs: { [intents.topUp(leaseId, 1_270_000n)]: tx('broadcast') } },
      ),
      { wishes: ['startNode'], low: undefined },
    ],
    [
      'says nothing of low funds where the term, or the spend limit, is near its end',
      serving(3000),
      { low: undefined },
    ],
    [
      'tops up no further than the spend limit',
      low({
        lease: lease({
          term: { durationSeconds: 86_400 },
          pricing: { maxPricePerGpuHour: '0.60', spendLimit: '0.8', assetSymbol: 'USDC' },
        }),
      }),
      { wishes: ['startNode', 'topUp 80000 to 800000'] },
    ],
  ]);
});

describe('the end', () => {
  const long = { maxSeconds: 86_400, deposit: 720_000n };
  const longRecord = (until: number) =>
    servingRecord(until, { quote: quoteRecord({ maxSeconds: 86_400 }), deposit: '720000' });
  check([
    [
      'begins when the lease is deleted',
      serving(100, { lease: lease({}, deleted) }),
      { ready: 'False Releasing', kstatus: 'Reconciling', wishes: ['beginEnd Released'], within: 0 },
    ],
    [
      'begins for a deleted lease though nothing is known of the chain',
      serving(100, {
        lease: lease({}, deleted),
        chain: { state: 'unknown', reason: 'ChainUnreachable', message: 'no answer' },
      }),
      { wishes: ['beginEnd Released'] },
    ],
    [
      'begins, drain time and all, before the term is over',
      serving(3310, { chain: chain(3310, { escrow: escrow() }) }),
      { wishes: ['beginEnd Expired'] },
    ],
    [
      'is announced a quarter of an hour before its drain begins, once',
      serving(2410, { chain: chain(2410, { escrow: escrow() }) }),
      { ready: 'True Serving', wishes: ['startNode', 'warn'] },
    ],
    [
      'is not announced before',
      serving(2409, { chain: chain(2409, { escrow: escrow() }) }),
      { ready: 'True Serving', wishes: ['startNode'], within: 1 },
    ],
    [
      'is not announced again',
      serving(2500, {
        record: servingRecord(2500, { warnedAt: instant(2410) }),
        chain: chain(2500, { escrow: escrow() }),
      }),
      { ready: 'True Serving', wishes: ['startNode'] },
    ],
    [
      'is announced in the last quarter of a short term',
      serving(49, {
        lease: lease({ term: { durationSeconds: 60 } }),
        record: servingRecord(49, { quote: quoteRecord({ maxSeconds: 60 }), deposit: '6000' }),
        chain: chain(49, { escrow: escrow({ maxSeconds: 60 }) }),
      }),
      { ready: 'True Serving', wishes: ['startNode', 'warn'] },
    ],
    [
      'is announced when a spend limit ends it before its term',
      serving(400, {
        lease: lease({ pricing: { maxPricePerGpuHour: '0.60', spendLimit: '0.1', assetSymbol: 'USDC' } }),
        chain: chain(400, { escrow: escrow({ deposit: 100_000n }) }),
      }),
      { ready: 'True Serving', wishes: ['startNode', 'warn'] },
    ],
    [
      'is not announced for a deposit that is about to be topped up',
      serving(6700, {
        lease: lease({ term: { durationSeconds: 86_400 } }),
        record: longRecord(6700),
        chain: chain(6700, { escrow: escrow(long) }),
      }),
      { ready: 'True Serving', wishes: ['startNode', 'topUp 669000 to 1389000'] },
    ],
    [
      'is announced when the escrow ends on chain, however little was served',
      serving(3200, { record: servingRecord(100), chain: chain(3200, { escrow: escrow() }) }),
      { ready: 'True Serving', wishes: ['startNode', 'vouch 3190', 'warn'] },
    ],
    [
      'does not begin before its time',
      serving(3309, { chain: chain(3309, { escrow: escrow() }) }),
      { ready: 'True Serving' },
    ],
    [
      'takes a tenth of a short term for the drain, not five minutes',
      serving(63, {
        lease: lease({ term: { durationSeconds: 60 } }),
        record: servingRecord(63, { quote: quoteRecord({ maxSeconds: 60 }), deposit: '6000' }),
        chain: chain(63, { escrow: escrow({ maxSeconds: 60 }) }),
      }),
      { ready: 'True Serving' },
    ],
    [
      'begins when a tenth of a short term is left',
      serving(64, {
        lease: lease({ term: { durationSeconds: 60 } }),
        record: servingRecord(64, { quote: quoteRecord({ maxSeconds: 60 }), deposit: '6000' }),
        chain: chain(64, { escrow: escrow({ maxSeconds: 60 }) }),
      }),
      { wishes: ['beginEnd Expired'] },
    ],
    [
      'begins when the escrow ends on chain, however little was served',
      serving(100, { chain: chain(4200, { escrow: escrow() }) }),
      { wishes: ['beginEnd Expired'] },
    ],
    [
      'begins when its budget was exceeded for as long as its grace',
      serving(670, { budgets: under([perDay('0.005', 'Drain')], 70, servingRecord(70)) }),
      { wishes: ['beginEnd BudgetExceeded'], says: 'GpuBudget team: 0.005 USDC a day are spent.' },
    ],
    [
      'does not begin before that',
      serving(669, { budgets: under([perDay('0.005', 'Drain')], 70, servingRecord(70)) }),
      { ready: 'True Serving', within: 1 },
    ],
    [
      'does not begin for a budget that denies new money only',
      serving(670, { budgets: under([perDay('0.005')], 70, servingRecord(70)) }),
      { ready: 'True Serving' },
    ],
    [
      'begins when the deposit is used up and its budget allows no more',
      serving(6910, {
        lease: lease({ term: { durationSeconds: 86_400 } }),
        budgets: under([perDay('0.72')], 6910, longRecord(6910)),
        record: longRecord(6910),
        chain: chain(6910, { escrow: escrow(long) }),
      }),
      { wishes: ['beginEnd BudgetExceeded'], says: 'GpuBudget team allows 0.72 USDC a day' },
    ],
    [
      'begins when the spend limit is used up',
      serving(970, {
        lease: lease({ pricing: { maxPricePerGpuHour: '0.60', spendLimit: '0.1', assetSymbol: 'USDC' } }),
        chain: chain(970, { escrow: escrow({ deposit: 100_000n }) }),
      }),
      { wishes: ['beginEnd SpendLimitReached'], says: 'spendLimit 0.1 USDC is reached' },
    ],
    [
      'does not begin at once for a spend limit that pays for less than the drain',
      serving(20, {
        lease: lease({ pricing: { maxPricePerGpuHour: '0.60', spendLimit: '0.02', assetSymbol: 'USDC' } }),
        chain: chain(20, { escrow: escrow({ deposit: 20_000n }) }),
      }),
      { ready: 'True Serving' },
    ],
    [
      'begins when the deposit is used up and the wallet is empty',
      serving(6910, {
        lease: lease({ term: { durationSeconds: 86_400 } }),
        record: longRecord(6910),
        chain: chain(6910, { escrow: escrow(long), wallet: { balance: 0n } }),
      }),
      { wishes: ['beginEnd InsufficientFunds'], says: 'is out of USDC' },
    ],
    [
      'does not blame a spend limit that is far away',
      serving(6910, {
        lease: lease({
          term: { durationSeconds: 86_400 },
          pricing: { maxPricePerGpuHour: '0.60', spendLimit: '5', assetSymbol: 'USDC' },
        }),
        record: longRecord(6910),
        chain: chain(6910, { escrow: escrow(long) }),
        settings: settings({ maxEscrow: () => 720_000n }),
      }),
      { wishes: ['beginEnd InsufficientFunds'], says: '--max-escrow' },
    ],
    [
      'begins when the provider closes the escrow',
      serving(100, { chain: chain(100, { escrow: escrow({ closed: true, closeReason: 'ProviderCapacityLost' }) }) }),
      { wishes: ['beginEnd ProviderFault'], says: 'ProviderCapacityLost' },
    ],
    [
      'begins, and tries another, when the provider closes it before it ran',
      funded({ chain: chain(5, { escrow: escrow({ closed: true, closeReason: 'ProviderPolicy' }) }) }),
      { wishes: ['beginEnd ProviderFault and retry'] },
    ],
    [
      'begins when the provider stops serving',
      serving(100, { allocation: allocated({ state: 'Suspended', reason: 'Unpaid', message: 'unpaid for 600 s' }) }),
      { wishes: ['beginEnd ProviderFault'], says: 'unpaid for 600 s' },
    ],
    [
      'begins when the provider says until when it serves, while it still does',
      serving(100, { allocation: allocated({ leaveBy: instant(700) }) }),
      { wishes: ['beginEnd ProviderHeld'], says: 'taken out of service' },
    ],
    [
      'begins when the provider denies what it served',
      serving(100, { allocation: { state: 'absent', reason: 'EscrowMismatch', message: 'another quote' } }),
      { wishes: ['beginEnd ProviderFault'] },
    ],
    [
      'does not begin when the provider has lost what it knew: it is asked once more',
      serving(100, { allocation: { state: 'absent', reason: 'LeaseNotFound', message: 'no allocation' } }),
      { wishes: ['allocate'] },
    ],
    [
      'begins when its provider is to be drained',
      serving(100, { providers: factsOf(providerFact({ provider: provider({ stopPolicy: 'HoldAndDrain' }) })) }),
      { wishes: ['beginEnd ProviderHeld'] },
    ],
    [
      'does not begin when its provider takes no new leases',
      serving(100, { providers: factsOf(providerFact({ provider: provider({ stopPolicy: 'Hold' }) })) }),
      { ready: 'True Serving' },
    ],
    [
      'begins when the node was lost for half an hour',
      serving(1900, { node: node(90, { ready: 'Unknown', message: 'no heartbeat' }) }),
      { wishes: ['beginEnd NodeLost'], says: 'no heartbeat' },
    ],
    [
      'does not begin a second sooner',
      serving(1889, { node: node(90, { ready: 'Unknown' }) }),
      { ready: 'Unknown NodeNotReady' },
    ],
    [
      'begins when somebody deletes the Node',
      serving(100, { node: node(10, { deleting: true }) }),
      { wishes: ['beginEnd Released'] },
    ],
    [
      'begins when the chain took back an escrow that is served, and its quote ran out',
      serving(200, { chain: chain(200, { safe: { blockTime: t0 + 190 } }) }),
      { wishes: ['beginEnd ProviderFault and retry'], says: 'the chain took the escrow back' },
    ],
    [
      'does not begin while such an escrow may still come back',
      serving(100, { chain: chain(100, { txs: openTx('broadcast') }) }),
      { ready: 'Unknown EscrowPending', wishes: [] },
    ],
    [
      'never begins because a provider is silent',
      serving(1000, { allocation: { state: 'unknown', message: 'no answer' } }),
      { ready: 'True Serving' },
    ],
    [
      'never begins because the chain is silent, were the term over or not',
      serving(90_000, { chain: { state: 'unknown', reason: 'ChainUnreachable', message: 'no answer' } }),
      { ready: 'True Serving' },
    ],
  ]);
});

describe('drain, release, settle: in this order', () => {
  const ended = (
    now: number,
    change: Partial<Observed> = {},
    end: Partial<Ending> = {},
    more: Partial<LeaseRecord> = {},
  ) =>
    serving(100, {
      lease: lease({}, deleted),
      record: servingRecord(100, { end: ending(end), ...more }),
      chain: chain(now, { escrow: escrow(), txs: openTx('mined') }),
      now: at(now),
      ...change,
    });
  const drained = { drainedAt: instant(110) };
  const release = { servedSeconds: 100, signature: '0xab', at: instant(120) } as const;
  const gone = { node: undefined };
  const signed = { signedSeconds: 100 };
  const closed = escrow({ closed: true, closeReason: 'LastVoucher', closingAt: t0 + 121, refunded: 350_000n });
  check([
    [
      'evicts while pods are left, and goes on serving them',
      ended(101, { node: node(10, { pods: 2 }) }),
      { ready: 'False Releasing', wishes: ['startNode', 'drainNode'], says: '2 pods are being evicted', within: 1 },
    ],
    [
      'vouches while it drains, or the provider would end the pods',
      ended(170, { node: node(10, { pods: 2 }) }),
      { wishes: ['startNode', 'vouch 160', 'drainNode'] },
    ],
    [
      'deletes what has not gone in time',
      ended(400, { node: node(10, { pods: 1 }) }, {}, { meter: { servedMs: 389_000, countedUntil: instant(399) } }),
      { wishes: ['startNode', 'drainNode by force'] },
    ],
    [
      'does not wait for pods when the deposit is used up',
      ended(
        230,
        { node: node(10, { pods: 1 }), chain: chain(230, { escrow: escrow({ deposit: 10_000n }) }) },
        {},
        { meter: { servedMs: 219_000, countedUntil: instant(229) }, signedSeconds: 100, vouchedSeconds: 100 },
      ),
      { wishes: ['startNode', 'drainNode by force'], says: 'the deposit is used up' },
    ],
    [
      'gives up pods that nobody ends',
      ended(460, { node: node(10, { pods: 1 }) }),
      { wishes: ['markDrained 450'], within: 0 },
    ],
    [
      'does not wait for a provider to let go of what it does not know of',
      ended(
        115,
        { ...gone, allocation: { state: 'absent', reason: 'LeaseNotFound', message: 'no allocation' } },
        drained,
      ),
      { wishes: ['requestClose'], says: 'Asking the contract to stop the clock' },
    ],
    [
      'counts what was served until the last pod was gone',
      ended(110, { node: node(10, { pods: 0 }) }),
      { wishes: ['markDrained 100'], within: 0 },
    ],
    [
      'removes the node before the provider lets go, and bills until then',
      ended(111, {}, drained),
      { wishes: ['saveMeter 101', 'stopNode'] },
    ],
    [
      'gives the last voucher, then asks the provider to let go',
      ended(112, gone, drained),
      { wishes: ['vouch 90 last', 'release'], says: 'Waiting for ams to let go' },
    ],
    [
      'keeps asking a provider that does not answer',
      ended(500, { ...gone, allocation: { state: 'unknown', message: 'no answer' } }, drained),
      { wishes: ['vouch 90 last', 'release'], says: 'no answer' },
    ],
    [
      'stops the clock alone when the provider stays silent',
      ended(710, { ...gone, allocation: { state: 'unknown', message: 'no answer' } }, drained),
      { wishes: ['requestClose'] },
    ],
    [
      'asks once',
      ended(
        712,
        { ...gone, chain: chain(712, { escrow: escrow(), txs: { [intents.requestClose(leaseId)]: tx('broadcast') } }) },
        drained,
      ),
      { wishes: [] },
    ],
    [
      'waits while the provider may still claim',
      ended(720, { ...gone, chain: chain(720, { escrow: escrow({ closingAt: t0 + 711 }) }) }, drained),
      { wishes: [], says: 'The provider may still claim until 2026-01-01T01:11:51.000Z', within: 60 },
    ],
    [
      'finalizes after the claim window',
      ended(4311, { ...gone, chain: chain(4311, { escrow: escrow({ closingAt: t0 + 711 }) }) }, drained),
      { wishes: ['finalize'] },
    ],
    [
      'asks for no close of an escrow that ended by itself',
      ended(5000, { ...gone, chain: chain(5000, { escrow: escrow() }) }, drained),
      { wishes: [], says: 'The provider may still claim' },
    ],
    [
      'leaves the close to the provider that has let go',
      ended(130, gone, drained, { release }),
      { wishes: [], says: 'Waiting for the provider to close' },
    ],
    [
      "closes with the provider's release when the provider does not",
      ended(240, gone, drained, { release }),
      { wishes: ['closeWithRelease'] },
    ],
    [
      'closes once',
      ended(
        241,
        { ...gone, chain: chain(241, { escrow: escrow(), txs: { [intents.close(leaseId)]: tx('stored') } }) },
        drained,
        { release },
      ),
      { wishes: [] },
    ],
    ...(['reverted', 'refused'] as const).map(
      (state): Row => [
        `goes the way without a signature when closing with the release was ${state}`,
        ended(
          241,
          { ...gone, chain: chain(241, { escrow: escrow(), txs: { [intents.close(leaseId)]: tx(state) } }) },
          drained,
          { release },
        ),
        { wishes: ['requestClose'] },
      ],
    ),
    [
      'is settled only when the close is safe',
      ended(
        130,
        { ...gone, chain: chain(130, { escrow: closed, safe: { blockTime: t0 + 115, escrow: escrow() } }) },
        drained,
        { release },
      ),
      { wishes: [], says: 'waiting for the block to be safe' },
    ],
    [
      'asks for the provider’s signature while the close is not safe yet',
      ended(130, { ...gone, chain: chain(130, { escrow: closed, safe: { blockTime: t0 + 115 } }) }, drained, signed),
      { wishes: ['release'], says: 'waiting for the block to be safe', within: 1 },
    ],
    [
      'and a little longer when it is',
      ended(140, { ...gone, chain: chain(140, { escrow: closed }) }, drained, signed),
      { wishes: ['release'], says: 'waiting for ams to sign what it served', within: 1 },
    ],
    [
      'writes the receipt without it when it does not come',
      ended(152, { ...gone, chain: chain(152, { escrow: closed }) }, drained, signed),
      { wishes: ['writeReceipt'], within: 0 },
    ],
    [
      'writes the receipt at once when it is there',
      ended(140, { ...gone, chain: chain(140, { escrow: closed }) }, drained, { ...signed, release }),
      { wishes: ['writeReceipt'], within: 0 },
    ],
    [
      'asks for no signature where nothing was served',
      ended(140, { ...gone, chain: chain(140, { escrow: closed }) }, drained, { signedSeconds: 0 }),
      { wishes: ['writeReceipt'], within: 0 },
    ],
    [
      'writes no receipt for an escrow that was opened with another quote',
      ended(140, { ...gone, chain: chain(140, { escrow: { ...closed, quoteHash: leaseId } }) }, drained, signed),
      { wishes: ['finish Released'] },
    ],
    [
      'writes its last word when there is a receipt',
      ended(140, { ...gone, chain: chain(140, { escrow: closed }) }, drained, { receiptOf: leaseId }),
      { wishes: ['finish Released'], within: 0 },
    ],
    [
      'closes nothing while the chain cannot be read',
      ended(900, { ...gone, chain: { state: 'unknown', reason: 'ChainUnreachable', message: 'no answer' } }, drained),
      { wishes: [], says: 'no answer' },
    ],
    [
      'ends a lease that never had a quote',
      { lease: lease({}, deleted), record: record({ end: ending(drained) }), now: at(120) },
      { wishes: ['finish Released'] },
    ],
    [
      'ends a lease whose escrow was never sent',
      { lease: lease({}, deleted), record: paidRecord({ end: ending(drained) }), chain: chain(120), now: at(120) },
      { wishes: ['finish Released'] },
    ],
    [
      'does not forget an opening that is still on its way',
      {
        lease: lease({}, deleted),
        record: paidRecord({ end: ending(drained) }),
        chain: chain(110, { txs: openTx('broadcast') }),
        now: at(110),
      },
      { wishes: [], says: 'may still open the escrow' },
    ],
    [
      'forgets an opening whose quote has run out at the safe head',
      {
        lease: lease({}, deleted),
        record: paidRecord({ end: ending(drained) }),
        chain: chain(130, { txs: openTx('broadcast') }),
        now: at(130),
      },
      { wishes: ['finish Released'] },
    ],
  ]);
});

describe('another try', () => {
  const failed = (attempt: number, lived: Partial<Observed> = {}): Partial<Observed> => ({
    record: paidRecord({
      attempt,
      end: ending({ reason: 'ProviderFault', message: 'StartTimeout', retry: true, drainedAt: instant(901) }),
      receiptOf: leaseId,
    }),
    chain: chain(950, { escrow: escrow({ closed: true, closeReason: 'Released', closingAt: t0 + 920 }) }),
    now: at(950),
    ...lived,
  });
  check([
    [
      'is made with another provider when the escrow is settled',
      failed(1),
      { wishes: ['nextAttempt avoiding 3600 s'], within: 0 },
    ],
    ['is not made when the last one was the last', failed(3), { wishes: ['finish AttemptsExhausted'] }],
    [
      'is not made when the lease was deleted meanwhile',
      failed(1, { lease: lease({}, deleted) }),
      { wishes: ['finish ProviderFault'] },
    ],
    [
      'is not made before the escrow is settled',
      failed(1, { chain: chain(950, { escrow: escrow() }) }),
      { wishes: ['vouch 0 last', 'release'] },
    ],
  ]);
});

describe('afterwards', () => {
  const over = { endedAt: instant(200), endReason: 'Released' };
  check([
    [
      'an ended lease wishes for nothing',
      { lease: lease({}, { status: over }) },
      { ready: 'False Completed', wishes: [] },
    ],
    [
      'an ended lease wishes for nothing, whatever else is seen',
      serving(300, { lease: lease({}, { status: over }) }),
      { ready: 'False Completed', wishes: [] },
    ],
    [
      'an ended lease that is deleted is forgotten',
      { lease: lease({}, { status: over, ...deleted }) },
      { wishes: ['forget'] },
    ],
  ]);

  it('a lease that is ending has only the conditions of its end', () => {
    const plan = planLease(
      observed(serving(100, { lease: lease({}, deleted), record: servingRecord(100, { end: ending() }) })),
    );
    expect(plan.conditions.map((c) => `${c.type}=${c.status}`)).toEqual([
      'Ready=False',
      'Drained=Unknown',
      'Released=Unknown',
      'Settled=Unknown',
      'Reconciling=True',
    ]);
  });

  it('the conditions after the one where the lease stands are Unknown', () => {
    const { conditions } = planLease(observed(funded()));
    expect(conditions.map((c) => `${c.type}=${c.status} ${c.reason}`)).toEqual([
      'Quoted=True QuoteReady',
      'Funded=True EscrowOpen',
      'Provisioned=Unknown Provisioning',
      'Registered=Unknown WaitingForProvisioned',
      'Ready=Unknown Provisioning',
      'Reconciling=True Provisioning',
    ]);
    expect(lease().metadata.finalizers).toContain(finalizers.lease);
  });
});
