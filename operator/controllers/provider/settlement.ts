/**
 * The provider's money: reads all its escrows, and sends what `planSettlement` decides. Nothing is remembered between two
 * rounds but what is stored, so it may die anywhere: the outbox knows what was signed, the chain what was done.
 */
import type { Hex32, Signed, Voucher } from '../../api/messages.ts';
import type { LeaseRecord } from '../../core/allocation/record.ts';
import { planSettlement, type Settlement, type SettlementRules } from '../../core/allocation/settlement.ts';
import { type Escrow, newestOf } from '../../core/money/escrow.ts';
import type { Informer, Log } from '../../engine/types.ts';
import type { ChainView } from './chain-view.ts';
import { type RecordSecret, type Records, readRecord } from './records.ts';
import type { Call, Chains, Counters, EscrowChain } from './world.ts';

export interface SettlementOptions {
  readonly watched: Informer<RecordSecret>;
  readonly records: Records;
  readonly chains: Chains;
  readonly view: ChainView;
  readonly rounds: Rounds;
  readonly rules: (chain: EscrowChain, token: string) => SettlementRules;
  readonly now: () => Date;
  readonly log: Log;
  readonly counters: Counters;
  /** Something of this consumer was paid out. */
  readonly paid?: (consumer: string, signal: AbortSignal) => Promise<void>;
  /** The chain says something else about this lease than before. */
  readonly changed: (leaseId: Hex32) => void;
}

const readBatch = 100;
const settleBatch = 50;
/** A transaction that did not bring what was hoped for is tried again under a new key after so long. */
const retrySeconds = 300;

/** Chains whose last round failed, and those of which one is under way. */
export interface Rounds {
  readonly failed: Set<EscrowChain>;
  readonly busy: Set<EscrowChain>;
}

/**
 * One round over all leases of all chains. A chain that failed is not waited for the next time, so that its silence, which may
 * last as long as its time-outs, does not hold up the others.
 */
export async function settleAll(options: SettlementOptions, signal: AbortSignal): Promise<void> {
  const { log } = options;
  const { failed, busy } = options.rounds;
  const records = options.watched
    .list()
    .map((secret) => readRecord(secret, log))
    .filter((record): record is LeaseRecord => record !== undefined && !record.settled);
  options.view.retain(new Set(records.map((record) => record.leaseId)));
  await Promise.all(
    options.chains.all().map((chain) => {
      if (busy.has(chain)) return undefined;
      const wait = !failed.has(chain);
      const round = roundOf(chain);
      return wait ? round : undefined;
    }),
  );

  async function roundOf(chain: EscrowChain): Promise<void> {
    const own = records.filter(
      (record) => record.chainId === chain.chainId && record.escrow.toLowerCase() === chain.escrow.toLowerCase(),
    );
    busy.add(chain);
    try {
      await settleChain(options, chain, own, signal);
      failed.delete(chain);
    } catch (error) {
      failed.add(chain);
      if (!signal.aborted)
        log.warn({ chainId: chain.chainId, error: String(error) }, 'the round of settlements could not be finished');
    } finally {
      busy.delete(chain);
    }
  }
}

const signedVoucher = (record: LeaseRecord, voucher: NonNullable<LeaseRecord['voucher']>): Signed<Voucher> => ({
  message: { leaseId: record.leaseId, servedSeconds: voucher.servedSeconds, last: voucher.last },
  signature: voucher.signature,
});

async function settleChain(
  options: SettlementOptions,
  chain: EscrowChain,
  records: readonly LeaseRecord[],
  signal: AbortSignal,
): Promise<void> {
  const { view, now, log, counters } = options;
  try {
    await chain.tick(signal);
  } catch (error) {
    signal.throwIfAborted();
    // The escrows are read all the same: whether a lease is paid must not hang on our own transactions.
    log.warn({ chainId: chain.chainId, error: String(error) }, 'transactions under way could not be looked after');
  }

  const payers = new Set<string>();
  const wishes: { record: LeaseRecord; wish: Settlement }[] = [];
  for (let from = 0; from < records.length; from += readBatch) {
    const batch = records.slice(from, from + readBatch);
    const reads = await chain.reads(
      batch.map((record) => record.leaseId),
      signal,
    );
    // After the read, so that the escrow is at least as new as the time it is judged by is old.
    const nowSeconds = Math.floor(now().getTime() / 1000);
    for (const [index, record] of batch.entries()) {
      const seen = reads[index]!;
      const escrow = newestOf(seen);
      const before = view.seen(record.leaseId);
      view.set(record.leaseId, escrow);
      if (escrow !== undefined && escrow.claimed > 0n) payers.add(record.quote.consumer.toLowerCase());
      if (!before.known || differs(before.escrow, escrow)) options.changed(record.leaseId);
      wishes.push({
        record,
        wish: planSettlement(record, seen, options.rules(chain, record.quote.token), nowSeconds),
      });
    }
  }

  for (const consumer of payers) await options.paid?.(consumer, signal);

  const inFlight = new Set(await chain.inFlight(signal));
  const round = Math.floor(now().getTime() / 1000 / retrySeconds);
  const settles: { record: LeaseRecord; voucher: NonNullable<LeaseRecord['voucher']> }[] = [];
  for (const { record, wish } of wishes) {
    const { leaseId } = record;
    switch (wish.do) {
      case 'settle':
        settles.push({ record, voucher: wish.voucher });
        break;
      case 'close':
        await send(`close:${leaseId}`, chain.calls.close(signedVoucher(record, wish.voucher)));
        break;
      case 'providerClose':
        await send(`provider-close:${leaseId}`, chain.calls.providerClose(leaseId, wish.reason));
        break;
      case 'finalize':
        await send(`finalize:${leaseId}`, chain.calls.finalize(leaseId));
        break;
      case 'forget':
        await options.records.update(
          leaseId,
          (latest) => (latest.settled ? latest : { ...latest, settled: true }),
          signal,
        );
        break;
      case 'wait':
        break;
      default:
        wish satisfies never;
    }
  }
  // One batch at a time: the next one is decided on what this one brought.
  if (settles.length > 0 && ![...inFlight].some((key) => key.startsWith('settle:'))) {
    const batch = settles.slice(0, settleBatch);
    const vouchers = batch.map(({ record, voucher }) => signedVoucher(record, voucher));
    const [first] = vouchers;
    const call = vouchers.length === 1 ? chain.calls.settle(first!) : chain.calls.settleMany(vouchers);
    await send(`settle:${first!.message.leaseId}:${first!.message.servedSeconds}:${vouchers.length}`, call);
  }

  async function send(purpose: string, call: Call): Promise<void> {
    if ([...inFlight].some((key) => key.startsWith(`${purpose}@`))) return;
    const kind = purpose.slice(0, purpose.indexOf(':'));
    const submitted = await chain.submit({ key: `${purpose}@${round}`, ...call }, signal);
    if (submitted.outcome === 'refused') {
      counters.count('gpulease_gateway_settlement_refusals_total', { name: submitted.refusal.name });
      log.warn(
        { purpose, refusal: submitted.refusal.name, message: submitted.refusal.message },
        'the contract would refuse a transaction',
      );
      return;
    }
    if (submitted.entry.state === 'stored' || submitted.entry.state === 'broadcast') {
      counters.count('gpulease_gateway_settlements_total', { kind });
      log.info({ purpose }, 'a transaction was submitted');
    }
  }
}

function differs(before: Escrow | undefined, after: Escrow | undefined): boolean {
  return (
    before?.closed !== after?.closed || before?.closingAt !== after?.closingAt || before?.deposit !== after?.deposit
  );
}
