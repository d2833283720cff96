/**
 * Price truth: 10,000 leases, from quote to close, decided by the operator's own plans against the model of the contract.
 * Random prices, terms, limits and tokens; nodes that come and go; processes that die after what they stored; vouchers that are
 * lost; settlements in any parts and order; every way to close. What is billed is never above what was quoted, shown or
 * allowed, and is, to the base unit, the price of the seconds of one voucher.
 */
import { describe, expect, it } from 'vitest';
import type { Address } from '../../../../operator/api/messages.ts';
import type { Action } from '../../../../operator/core/lease/actions.ts';
import { whole } from '../../../../operator/core/lease/amounts.ts';
import type { LeaseRecord, NodeFact, Observed } from '../../../../operator/core/lease/observed.ts';
import { planLease } from '../../../../operator/core/lease/plan.ts';
import { formatAmount, parseAmount } from '../../../../operator/core/money/amount.ts';
import { dueFor } from '../../../../operator/core/money/escrow.ts';
import { callEscrow, type EscrowCall, newEscrowModel } from '../../../../operator/core/money/model.ts';
import { random } from '../../../simulation/random.ts';
import {
  allocated,
  chain,
  factsOf,
  lease,
  leaseId,
  networkId,
  record as newRecord,
  node as nodeFact,
  observed,
  provider,
  providerAddress,
  providerFact,
  quoteHash,
  quoteRecord,
  rail,
  sessionKey,
  settings,
  t0,
  token,
  wallet,
} from '../../../support/builders.ts';

const owner: Address = `0x${'8'.repeat(40)}`;
const tokens = [
  { assetSymbol: 'USDC', decimals: 6, feeBps: 200 },
  { assetSymbol: 'GPU', decimals: 18, feeBps: 0 },
] as const;
const claimWindowSeconds = 3600;

/** What became of one lease; throws where something is wrong with it. */
function live(seed: number, told: Map<string, number>): void {
  const dice = random(`price ${seed}`);
  const within = (least: number, most: number) => Math.floor(dice.between(least, most + 1));
  const count = (what: string): void => void told.set(what, (told.get(what) ?? 0) + 1);

  // ---- what is shown, and quoted

  const asset = dice.pick(tokens);
  const shown = formatAmount(BigInt(within(1, dice.pick([9, 999_999, 99_999_999]))), 6);
  const offered = parseAmount(shown, asset.decimals);
  // A provider may ask for less than it shows, in parts that no offer could name.
  const price = dice.chance(0.5) ? offered : (offered * BigInt(within(500_000, 999_999))) / 1_000_000n;
  const gpus = within(1, 16);
  const maxSeconds = dice.pick([within(60, 600), within(600, 20_000), within(600, 20_000), within(20_000, 300_000)]);
  const minSeconds = within(1, Math.min(3600, maxSeconds));
  const bill = (seconds: number) => (BigInt(seconds) * price * BigInt(gpus)) / 3600n;
  const limit = dice.chance(0.3)
    ? whole((bill(maxSeconds) * BigInt(within(1, 120))) / 100n, asset.decimals)
    : undefined;
  if (limit !== undefined && (limit.split('.')[0]!.length > 9 || /^[0.]+$/.test(limit))) return;
  const depositSeconds = within(60, 7200);
  const asked = t0 - 5;
  const quote = quoteRecord(
    {
      pricePerGpuHour: String(price),
      gpus,
      maxSeconds,
      minSeconds,
      graceSeconds: within(1, 600),
      expiresAt: t0 + 7000,
    },
    { assetSymbol: asset.assetSymbol, decimals: asset.decimals, askedAt: new Date(asked * 1000).toISOString() },
  );
  const wish = lease({
    gpu: { models: ['RTX4090'], count: gpus, interconnect: 'Any' },
    term: { durationSeconds: maxSeconds },
    drainTimeoutSeconds: within(0, 600),
    pricing: {
      maxPricePerGpuHour: shown,
      assetSymbol: asset.assetSymbol,
      ...(limit === undefined ? {} : { spendLimit: limit }),
    },
  });
  const providers = factsOf(
    providerFact({
      provider: provider({
        payment: { rails: [rail({ assetSymbol: asset.assetSymbol, maxEscrow: '999999999' })] },
      }),
    }),
  );
  const decided = settings({
    depositSeconds,
    lowWaterSeconds: Math.floor(depositSeconds / dice.pick([2, 3, 10])),
    maxEscrow: () => 10n ** 40n,
  });

  // ---- the world

  const first = newEscrowModel({ networkId, owner, feeRecipient: owner, claimWindowSeconds });
  const rule = { allowed: true, feeBps: asset.feeBps };
  const allowed = callEscrow(first, { do: 'setToken', from: owner, token, rule }, t0);
  if (!allowed.ok) throw new Error(allowed.refusal);
  let model = allowed.state;
  let now = t0;
  const call = (wished: EscrowCall): boolean => {
    const result = callEscrow(model, wished, now);
    if (result.ok) model = result.state;
    return result.ok;
  };
  const escrow = () => model.leases.get(leaseId);

  let record: LeaseRecord = newRecord({ quote });
  let node: NodeFact | undefined;
  let allocation = false;
  let letGo = false;
  let finished = false;
  let deleted = false;
  /** What the provider holds. */
  const vouchers: number[] = [];
  const silent = dice.chance(0.15);
  const voucher = (servedSeconds: number, last = false) => ({ leaseId, servedSeconds, last });

  function seen(): Observed {
    return observed({
      lease: deleted
        ? { ...wish, metadata: { ...wish.metadata, deletionTimestamp: new Date(now * 1000).toISOString() } }
        : wish,
      record,
      providers,
      now: new Date(now * 1000),
      settings: decided,
      chain: chain(now - t0, {
        escrow: escrow(),
        claimWindowSeconds,
        wallet: { balance: 10n ** 40n },
        safe: { blockTime: now - 2, escrow: escrow() },
      }),
      ...(escrow() && !escrow()!.closed && !record.release
        ? {
            allocation:
              allocation && !letGo ? allocated({ gpus }) : { state: 'absent' as const, reason: 'LeaseNotFound' },
          }
        : {}),
      ...(node ? { node } : {}),
    });
  }

  /** Answers whether the process lived through it. What it stored, it stored. */
  function apply(action: Action): boolean {
    const save = (change: Partial<LeaseRecord>) => {
      record = JSON.parse(JSON.stringify({ ...record, ...change })) as LeaseRecord;
    };
    const dies = dice.chance(0.03);
    if (dies) count('died');
    switch (action.do) {
      case 'openEscrow':
        if (record.deposit === undefined) save({ deposit: String(action.deposit) });
        if (dies) return false;
        call({
          do: 'open',
          from: wallet,
          quote: { ...quote.signed.quote, pricePerGpuHour: price, nonce: 7n } as never,
          leaseId,
          quoteHash,
          signedBy: providerAddress,
          signer: sessionKey,
          deposit: action.deposit,
        });
        return true;
      case 'topUp':
        save({ deposit: String(action.total) });
        if (dies) return false;
        expect(call({ do: 'topUp', from: wallet, leaseId, amount: action.amount })).toBe(true);
        count('topped up');
        return true;
      case 'allocate':
        allocation = true;
        return true;
      case 'startNode':
        node ??= nodeFact(now - t0, { ready: 'False', pods: 1 });
        return true;
      case 'markStarted':
        save({ startedAt: action.at.toISOString(), meter: { servedMs: 0, countedUntil: action.at.toISOString() } });
        return true;
      case 'saveMeter':
        save({ meter: action.meter });
        return true;
      case 'vouch':
        save({ meter: action.meter, signedSeconds: Math.max(record.signedSeconds, action.seconds) });
        if (dies) return false;
        if (dice.chance(silent ? 0.9 : 0.2)) count('voucher lost');
        else {
          vouchers.push(action.seconds);
          save({ vouchedSeconds: Math.max(record.vouchedSeconds, action.seconds) });
        }
        return true;
      case 'warn':
        save({ warnedAt: action.at.toISOString() });
        return true;
      case 'tellLow':
        save({ lowFundsAt: action.at.toISOString() });
        return true;
      case 'tellFunded':
        save({ lowFundsAt: undefined });
        return true;
      case 'beginEnd':
        save({ end: action.why });
        count(action.why.reason);
        return true;
      case 'drainNode':
        if (node) node = { ...node, pods: 0 };
        return true;
      case 'markDrained':
        save({ end: { ...record.end!, drainedAt: action.at.toISOString() }, meter: action.meter });
        return true;
      case 'stopNode':
        node = undefined;
        return true;
      case 'release': {
        if (silent) return true;
        letGo = true;
        const servedSeconds = Math.max(0, ...vouchers);
        if (dies) return false;
        save({ release: { servedSeconds, signature: '0x', at: new Date(now * 1000).toISOString() } });
        return true;
      }
      case 'closeWithRelease':
        call({
          do: 'closeWithRelease',
          from: wallet,
          release: { leaseId, servedSeconds: record.release!.servedSeconds },
          signedBy: providerAddress,
        });
        return true;
      case 'writeReceipt':
        save({ receiptOf: leaseId });
        return true;
      case 'requestClose':
      case 'finalize':
        call({ do: action.do, from: wallet, leaseId });
        return true;
      // Its limit buys nothing, and its quote has run out.
      case 'requestQuote':
      case 'nextAttempt':
      case 'finish':
        finished = true;
        return true;
      default:
        throw new Error(`nobody does ${action.do}`);
    }
  }

  /** The provider takes what it was given, when it likes, in any order. */
  function provides(): void {
    if (node && dice.chance(node.ready === 'True' ? 0.08 : 0.7)) {
      const ready = node.ready === 'True' ? 'False' : 'True';
      node = { ...node, ready, since: new Date((now - dice.between(0, 1)) * 1000) };
    }
    if (vouchers.length === 0 || !dice.chance(0.3)) return;
    const some = Array.from({ length: within(1, 3) }, () => dice.pick(vouchers));
    if (some.length === 1 || dice.chance(0.5))
      for (const seconds of some)
        call({ do: 'settle', from: providerAddress, voucher: voucher(seconds), signedBy: sessionKey });
    else
      call({
        do: 'settleMany',
        from: providerAddress,
        items: some.map((seconds) => ({ voucher: voucher(seconds), signedBy: sessionKey })),
      });
    count('settled in parts');
  }

  // ---- the life

  const lives = within(3, 40);
  for (let step = 0; !finished; step++) {
    if (step > 400) throw new Error('it does not end');
    if (step === lives) deleted = true;
    for (let round = 0; round < 12 && !finished; round++) {
      const plan = planLease(seen());
      if (!plan.actions.every(apply) || plan.requeueAfterSeconds > 0) break;
    }
    if (!escrow() && step > 3 && record.deposit === undefined) break; // its limit buys nothing
    provides();
    // Half of the providers close with the last voucher, as they should; of the others the consumer does.
    if (letGo && !silent && escrow() && !escrow()!.closed && vouchers.length > 0 && seed % 2 === 0) {
      const before = escrow()!;
      const last = Math.max(...vouchers);
      const due = dueFor(before, last, now);
      call({ do: 'close', from: providerAddress, voucher: voucher(last, true), signedBy: sessionKey });
      expect(escrow()).toMatchObject({ closed: true, claimed: due > before.claimed ? due : before.claimed });
    }
    const waits = record.end
      ? [within(1, 20), within(1, 20), within(1, 20), within(30, 4000)]
      : [within(1, 60), within(1, 600), within(1, Math.ceil(depositSeconds / 3))];
    now += record.startedAt === undefined && !record.end && dice.chance(0.98) ? within(1, 30) : dice.pick(waits);
  }

  // ---- the bill

  const closed = escrow();
  if (!closed) return;
  expect(closed.closed).toBe(true);
  count(`closed: ${closed.closeReason}`);
  count(asset.assetSymbol);
  const { claimed, servedSeconds, deposit, feeTaken, refunded } = closed;
  // To the base unit: the price of whole seconds, once, as far as the deposit goes.
  expect(claimed).toBe(bill(servedSeconds) < deposit ? bill(servedSeconds) : deposit);
  expect([0, ...vouchers, record.release?.servedSeconds ?? 0]).toContain(servedSeconds);
  expect(servedSeconds).toBeLessThanOrEqual(Math.min(record.signedSeconds, maxSeconds));
  expect(feeTaken).toBe((claimed * BigInt(asset.feeBps)) / 10_000n);
  expect(refunded).toBe(deposit - claimed);
  // Never above what was shown, quoted, allowed.
  expect(claimed).toBeLessThanOrEqual(bill(maxSeconds));
  expect(claimed * 3600n).toBeLessThanOrEqual(offered * BigInt(gpus) * BigInt(servedSeconds));
  expect(parseAmount(whole(claimed, asset.decimals), 18)).toBeLessThanOrEqual(
    parseAmount(whole(bill(maxSeconds), asset.decimals), 18),
  );
  if (limit !== undefined) expect(deposit).toBeLessThanOrEqual(parseAmount(limit, asset.decimals));
  expect(deposit).toBeLessThanOrEqual(bill(maxSeconds));
}

describe('10,000 leases', () => {
  it('are billed what was quoted, or less, and to the base unit for what was signed', () => {
    const told = new Map<string, number>();
    for (let seed = 1; seed <= 10_000; seed++) {
      try {
        live(seed, told);
      } catch (error) {
        throw new Error(`lease ${seed}: ${(error as Error).message}`, { cause: error });
      }
    }
    // It reached what it is about.
    const least: Record<string, number> = {
      USDC: 4000,
      GPU: 4000,
      'topped up': 1000,
      died: 1000,
      'voucher lost': 1000,
      'settled in parts': 1000,
      'closed: LastVoucher': 1000,
      'closed: Released': 1000,
      'closed: ConsumerRequested': 100,
      Expired: 500,
      SpendLimitReached: 200,
      NodeLost: 20,
    };
    for (const [what, times] of Object.entries(least))
      expect(told.get(what) ?? 0, `${what} among ${JSON.stringify([...told])}`).toBeGreaterThanOrEqual(times);
  }, 300_000);
});
