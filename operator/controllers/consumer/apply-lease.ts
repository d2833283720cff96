/** Makes a plan's wishes come true, one at a time. What must be remembered is stored before the wish is sent. */
import type { QuoteRequest, SignedQuote } from '../../api/gateway.ts';
import { finalizers, labels } from '../../api/labels.ts';
import type { LeaseAttempt } from '../../api/lease.ts';
import type { Hex } from '../../api/messages.ts';
import { wholeGpu } from '../../api/models.ts';
import type { Action } from '../../core/lease/actions.ts';
import { gpusInWords } from '../../core/lease/amounts.ts';
import { meterNow, servedSeconds } from '../../core/lease/meter.ts';
import { intents, type LeaseRecord, type Observed, type QuoteRecord, type Refused } from '../../core/lease/observed.ts';
import { planLease } from '../../core/lease/plan.ts';
import { farewell, farewellToData, lossInWords, soonLost } from '../../core/lease/warn.ts';
import { formatAmount } from '../../core/money/amount.ts';
import { paidSeconds } from '../../core/money/escrow.ts';
import type { Candidate } from '../../core/offer/match.ts';
import { parseQuantity } from '../../core/quantity.ts';
import { buildReceipt } from '../../core/receipt/build.ts';
import { addFinalizer, removeFinalizer } from '../../engine/status.ts';
import { resources } from '../../engine/types.ts';
import { countLease } from './budget.ts';
import { inTurn } from './in-turn.ts';
import { allocationFact, hintsOf, seenAgain } from './observe-lease.ts';
import type { Gateway } from './ports.ts';
import { emptyRecord } from './records.ts';
import { endOfLease } from './report-lease.ts';
import type { Hints, LeaseWorld } from './world.ts';

/** Remembered by a lease; of others, its namespace's labels tell. */
const mostBudgets = 32;

type ActionOf<Wish extends Action['do']> = Extract<Action, { do: Wish }>;

const lossOf = (world: LeaseWorld, { node }: Observed): string =>
  lossInWords(node === undefined ? [] : world.nodes.claims(node.name));

export async function applyAction(
  world: LeaseWorld,
  seen: Observed,
  action: Action,
  signal: AbortSignal,
): Promise<void> {
  const { lease } = seen;
  const uid = lease.metadata.uid!;
  const hints = hintsOf(world, uid);
  const record = (): LeaseRecord => world.records.get(uid) ?? emptyRecord;
  const save = (change: Partial<LeaseRecord>) => world.records.save(lease, { ...record(), ...change }, signal);
  /** Whether it is on its way. */
  const submit = async (intent: string, refused: Promise<Refused | undefined>): Promise<boolean> => {
    const refusal = await refused;
    if (refusal) {
      hints.refusedTx[intent] = refusal;
      world.log.warn(
        { lease: lease.metadata.name, namespace: lease.metadata.namespace, intent, error: refusal.name },
        'transaction refused by simulation',
      );
    } else delete hints.refusedTx[intent];
    return refusal === undefined;
  };
  /** Stores what will be locked, by what other leases hold by now. Undefined: they took the room, and the next look says so. */
  const reserve = <Wish extends Action['do']>(wish: Wish, depositOf: (wished: ActionOf<Wish>) => bigint) =>
    inTurn(world.records, async () => {
      const again = await seenAgain(world, seen, signal);
      const wished = planLease(again).actions.find((one): one is ActionOf<Wish> => one.do === wish);
      if (!wished) return undefined;
      const budgets = new Set([...(record().budgets ?? []), ...again.budgets.map((one) => one.uid)]);
      await save({
        deposit: String(depositOf(wished)),
        ...(budgets.size > 0 ? { budgets: [...budgets].slice(-mostBudgets) } : {}),
      });
      world.onCommitted?.();
      return wished;
    });
  /** Forgets what was signed for, once the budgets have counted it. Nobody decides by either in between. */
  const saveCounted = (change: () => Promise<void>) =>
    inTurn(world.records, async () => {
      await countLease(world, uid, signal);
      await change();
    });

  switch (action.do) {
    case 'addFinalizer':
      await addFinalizer(world.cluster, resources.gpuLeases, lease, finalizers.lease, signal);
      return;
    case 'requestQuote':
      await requestQuote(world, seen, action.candidates, signal);
      return;
    case 'approveToken': {
      const sent = await submit(
        intents.approve(action.quote.signed.chainId, action.quote.signed.quote.token),
        world.money.approve(action.quote, action.amount, signal),
      );
      // What an opening was refused for with a signature in it says nothing of one without.
      if (sent) delete hints.refusedTx[intents.open(action.quote.leaseId)];
      return;
    }
    case 'openEscrow': {
      const wished = record().deposit === undefined ? await reserve('openEscrow', (one) => one.deposit) : action;
      if (!wished) return;
      const opened = world.money.open(wished.quote, wished.deposit, wished.way, signal);
      await submit(intents.open(wished.quote.leaseId), opened);
      return;
    }
    case 'topUp': {
      const wished = await reserve('topUp', (one) => one.total);
      if (!wished) return;
      const { quote, amount, total } = wished;
      const sent = await submit(intents.topUp(quote.leaseId, total), world.money.topUp(quote, amount, total, signal));
      if (!sent) return;
      world.events.event(
        lease,
        'Normal',
        'ToppedUp',
        `Adding ${formatAmount(amount, quote.decimals)} ${quote.assetSymbol} to the escrow.`,
      );
      return;
    }
    case 'allocate': {
      tellOpened(world, seen, hints);
      const answer = await gatewayOf(world, action.quote)?.allocate(action.quote.signed, signal);
      hints.allocation = answer && allocationFact(answer);
      if (answer && !answer.ok && answer.kind === 'refused')
        world.events.event(lease, 'Warning', answer.reason, answer.message);
      return;
    }
    case 'startNode': {
      if (seen.allocation?.state !== 'known') return; // Without what the provider promises there is nothing to show.
      // Of a node that is Ready more is to be counted before it may return again than what was stored before it returned.
      const meter = seen.node?.ready === 'True' ? { ...record().meter, ready: true } : record().meter;
      await world.nodes.start(lease, action.quote, seen.allocation.info, paidThrough(seen), meter);
      if (!seen.node)
        world.events.event(
          lease,
          'Normal',
          'NodeRegistered',
          `Node ${world.nodes.nameOf(lease)} stands for ${gpusInWords(action.quote.signed.quote.gpus)} of ${action.quote.providerName}.`,
        );
      return;
    }
    case 'markStarted': {
      await save({ startedAt: action.at.toISOString(), meter: { servedMs: 0, countedUntil: action.at.toISOString() } });
      const created = new Date(lease.metadata.creationTimestamp ?? action.at);
      world.metrics?.ready(lease, (action.at.getTime() - created.getTime()) / 1000);
      world.events.event(lease, 'Normal', 'Serving', `Node ${seen.node?.name} is Ready; billing starts.`);
      return;
    }
    case 'saveMeter':
      await save({ meter: action.meter });
      return;
    case 'vouch':
      await vouch(world, seen, action, signal);
      return;
    case 'warn':
      // Stored before it is said: once, whatever happens in between.
      await save({ warnedAt: action.at.toISOString() });
      world.events.event(lease, 'Normal', 'EndsSoon', `${action.message}${lossOf(world, seen)}`);
      if (seen.node) world.nodes.warn(seen.node.name, 'LeaseEndsSoon', action.message, soonLost(action.message));
      return;
    case 'tellLow':
      await save({ lowFundsAt: action.at.toISOString() });
      world.events.event(lease, 'Warning', 'LowFunds', action.message);
      if (seen.node) world.nodes.warn(seen.node.name, 'LeaseLowFunds', action.message, soonLost(action.message));
      return;
    case 'tellFunded':
      await save({ lowFundsAt: undefined });
      world.events.event(lease, 'Normal', 'FundsRestored', 'There is money enough again: the lease goes on.');
      return;
    case 'beginEnd':
      await save({ end: action.why });
      if (seen.node) {
        const toClaims = farewellToData(seen, action.why);
        world.nodes.warn(seen.node.name, 'LeaseEnding', farewell(seen, action.why), toClaims);
      }
      world.events.event(
        lease,
        action.why.reason === 'Released' || action.why.reason === 'Expired' ? 'Normal' : 'Warning',
        action.why.reason,
        `The lease ends: ${action.why.message}${lossOf(world, seen)}`,
      );
      return;
    case 'drainNode':
      await world.nodes.drain(
        action.nodeName,
        { force: action.force, graceSeconds: action.graceSeconds, why: action.why },
        signal,
      );
      return;
    case 'markDrained': {
      const end = record().end;
      if (end) await save({ end: { ...end, drainedAt: action.at.toISOString() }, meter: action.meter });
      return;
    }
    case 'stopNode':
      await world.nodes.stop(lease, signal);
      return;
    case 'release': {
      const answer = await gatewayOf(world, action.quote)?.release(action.quote, signal);
      if (!answer?.ok || answer.value.state !== 'Ended') return;
      const { servedSeconds, signature } = answer.value;
      if (servedSeconds === undefined || signature === undefined) return;
      // Closing with it pays what it asks for: never more than was signed here.
      const { signedSeconds } = record();
      const wrong =
        servedSeconds > signedSeconds
          ? `it asks for ${servedSeconds} s, ${signedSeconds} s were vouched for`
          : await world.money.checkRelease(action.quote, servedSeconds, signature as Hex).then(
              () => undefined,
              (error: Error) => error.message,
            );
      if (wrong !== undefined) {
        world.events.event(
          lease,
          'Warning',
          'ReleaseRefused',
          `The release of ${action.quote.providerName} is not taken: ${wrong}.`,
        );
        return;
      }
      await save({ release: { servedSeconds, signature: signature as Hex, at: world.now().toISOString() } });
      return;
    }
    case 'closeWithRelease': {
      const { release } = record();
      if (release)
        await submit(
          intents.close(action.quote.leaseId),
          world.money.closeWithRelease(action.quote, release.servedSeconds, release.signature, signal),
        );
      return;
    }
    case 'requestClose':
      await submit(intents.requestClose(action.quote.leaseId), world.money.requestClose(action.quote, signal));
      return;
    case 'finalize':
      await submit(intents.finalize(action.quote.leaseId), world.money.finalize(action.quote, signal));
      return;
    case 'nextAttempt': {
      const now = world.now();
      const { quote, attempt, attempts, avoid } = record();
      hints.refusals = [];
      hints.refusedTx = {};
      hints.allocation = undefined;
      const ended: LeaseAttempt[] = quote
        ? [
            ...attempts,
            {
              number: attempt,
              offerName: quote.offerName,
              providerName: quote.providerName,
              startedAt: quote.askedAt,
              endedAt: now.toISOString(),
              reason: action.why.reason,
              message: action.why.message.slice(0, 1024),
            },
          ]
        : [...attempts];
      const avoided =
        action.avoidSeconds > 0 && quote
          ? [{ providerName: quote.providerName, until: now.getTime() + action.avoidSeconds * 1000 }]
          : [];
      // A quote that merely expired is no failed attempt of anybody, but its leaseRef is used up all the same.
      await saveCounted(() =>
        world.records.save(
          lease,
          {
            ...emptyRecord,
            attempt: attempt + 1,
            attempts: ended.slice(-10),
            avoid: [...avoid.filter((a) => a.until > now.getTime()), ...avoided].slice(-32),
          },
          signal,
        ),
      );
      world.events.event(lease, 'Warning', 'AttemptFailed', `Attempt ${attempt} failed: ${action.why.message}`);
      return;
    }
    case 'writeReceipt':
      await writeReceipt(world, seen, action, signal);
      // After it was written: whoever dies in between writes it again, and finds it there.
      await save({ receiptOf: action.quote.leaseId });
      return;
    case 'finish':
      await saveCounted(() => save({ settled: true, end: action.why }));
      await endOfLease(world, seen, action.why, signal);
      world.events.event(lease, 'Normal', 'Settled', endMessage(seen));
      return;
    case 'forget':
      await world.nodes.stop(lease, signal);
      // The lease goes last: once it is gone, nobody would come back for its record.
      await world.records.remove(uid, signal);
      if (!seen.orphaned) await removeFinalizer(world.cluster, resources.gpuLeases, lease, finalizers.lease, signal);
      world.hints.delete(uid);
      world.metrics?.pending(uid, undefined);
      return;
    default:
      action satisfies never;
  }
}

async function writeReceipt(
  world: LeaseWorld,
  { lease, record }: Observed,
  { quote, escrow }: ActionOf<'writeReceipt'>,
  signal: AbortSignal,
): Promise<void> {
  const uid = lease.metadata.uid!;
  const known = world.records.get(uid) ?? record!;
  const offer = world.offers.get({ name: quote.offerName });
  const unsealed = buildReceipt({
    clusterUid: world.clusterUid,
    lease: { namespace: lease.metadata.namespace!, name: lease.metadata.name, uid },
    record: known,
    quote,
    escrow,
    trail: await world.money.trail(quote, escrow, signal),
    // Signed again, for no more than was signed for before: the escrow is closed, and nobody can cash it.
    voucherSignature: await world.money.signVoucher(quote, known.signedSeconds, true),
    place: { region: offer?.status?.region, zone: offer?.status?.zone },
  });
  const receipt = { ...unsealed, seal: await world.money.sealReceipt(unsealed) };
  await world.receipts.write(receipt, signal);
  world.metrics?.settled(receipt);
  world.events.event(
    lease,
    'Normal',
    'ReceiptWritten',
    `Receipt of escrow ${quote.leaseId}${receipt.release ? '' : ", without the provider's release"}: gpulease receipt show ${quote.leaseId.slice(0, 18)}`,
  );
}

/** Once an escrow and process: a restart may say it again, and Kubernetes then counts it as a repeat. */
function tellOpened(world: LeaseWorld, { lease, chain, record }: Observed, hints: Hints): void {
  if (chain?.state !== 'known' || !chain.escrow || !record?.quote || hints.openedTold === record.quote.leaseId) return;
  hints.openedTold = record.quote.leaseId;
  const { decimals, assetSymbol, leaseId } = record.quote;
  const hash = chain.txs[intents.open(leaseId)]?.hash;
  const deposit = `${formatAmount(chain.escrow.deposit, decimals)} ${assetSymbol}`;
  world.events.event(
    lease,
    'Normal',
    'EscrowOpened',
    `${deposit} in escrow ${leaseId}${hash ? `, transaction ${hash}` : ''}.`,
  );
}

function gatewayOf(world: LeaseWorld, quote: QuoteRecord): Gateway | undefined {
  const provider = world.providers.get({ name: quote.providerName });
  return provider && world.gateways.of(provider);
}

async function requestQuote(
  world: LeaseWorld,
  seen: Observed,
  candidates: readonly Candidate[],
  signal: AbortSignal,
): Promise<void> {
  const { lease, record } = seen;
  const uid = lease.metadata.uid!;
  const hints = hintsOf(world, uid);
  const attempt = record?.attempt ?? 1;
  const leaseRef = world.money.leaseRef(uid, attempt);
  hints.refusals = [];
  for (const candidate of candidates) {
    const { provider, rail, offer } = candidate;
    const providerName = provider.metadata.name;
    const requests = lease.spec.resources?.requests;
    const request: QuoteRequest = {
      offerName: offer.metadata.labels?.[labels.offer] ?? offer.metadata.name.slice(providerName.length + 1),
      consumer: world.money.wallet,
      leaseRef,
      chainId: rail.chainId,
      escrow: rail.escrow,
      token: rail.token,
      gpus: lease.spec.gpu.count,
      maxSeconds: lease.spec.term.durationSeconds,
      startTimeoutSeconds: lease.spec.startTimeoutSeconds,
      ...(lease.spec.approval === 'Manual' ? { validSeconds: 3600 } : {}),
      ...(requests
        ? {
            requests: {
              cpu: text(requests.cpu),
              memory: text(requests.memory),
              ephemeralStorage: text(requests['ephemeral-storage']),
            },
          }
        : {}),
    };
    const answer = await world.gateways.of(provider).quote(request, signal);
    if (!answer.ok) {
      hints.refusals.push({
        providerName,
        reason: answer.kind === 'refused' ? answer.reason : 'ProviderUnreachable',
        message: answer.message.slice(0, 512),
      });
      continue;
    }
    const wrong = await mismatch(world, seen, candidate, request, answer.value, signal);
    if (typeof wrong === 'string') {
      hints.refusals.push({ providerName, reason: 'IdentityMismatch', message: wrong.slice(0, 512) });
      world.events.event(lease, 'Warning', 'IdentityMismatch', `${providerName}: ${wrong}`);
      continue;
    }
    const quote: QuoteRecord = {
      signed: answer.value,
      ...wrong,
      offerName: offer.metadata.name,
      providerName,
      assetSymbol: rail.assetSymbol,
      decimals: rail.decimals,
      askedAt: world.now().toISOString(),
    };
    await world.records.save(lease, { ...(record ?? emptyRecord), quote }, signal);
    hints.refusals = [];
    const price = formatAmount(BigInt(answer.value.quote.pricePerGpuHour), rail.decimals);
    world.events.event(
      lease,
      'Normal',
      'QuoteReady',
      `${providerName} quotes ${price} ${rail.assetSymbol} for one GPU for one hour.`,
    );
    return;
  }
}

/** A quote that runs out sooner is asked for again before it can be used, and again. */
const leastQuoteSeconds = 15;

const text = (quantity: string | number | undefined) => (quantity === undefined ? undefined : String(quantity));

/**
 * A quote is money once it is opened: every field must be what was asked for, and no dearer than what was shown. Answers
 * with what is wrong, or with the quote's hash and the escrow's id.
 */
async function mismatch(
  world: LeaseWorld,
  { lease }: Observed,
  { offer, provider, rail, pricePerGpuHour }: Candidate,
  request: QuoteRequest,
  signed: SignedQuote,
  signal: AbortSignal,
): Promise<string | { hash: QuoteRecord['hash']; leaseId: QuoteRecord['leaseId'] }> {
  const { quote, node } = signed;
  const same = (a: string, b: string) => a.toLowerCase() === b.toLowerCase();
  const now = world.now().getTime() / 1000;
  if (!same(quote.provider, provider.spec.identity.address))
    return `the quote is signed for ${quote.provider}, but spec.identity.address is ${provider.spec.identity.address}`;
  if (!same(quote.consumer, request.consumer)) return 'the quote is bound to another consumer';
  if (!same(quote.leaseRef, request.leaseRef)) return 'the quote is bound to another lease';
  if (signed.chainId !== request.chainId || !same(signed.escrow, request.escrow) || !same(quote.token, request.token))
    return 'the quote is for another rail than was asked for';
  if (BigInt(quote.pricePerGpuHour) > pricePerGpuHour)
    return `the quote asks ${formatAmount(BigInt(quote.pricePerGpuHour), rail.decimals)} for a GPU hour, the offer said ${formatAmount(pricePerGpuHour, rail.decimals)}`;
  if (quote.gpus !== request.gpus || node.gpus !== request.gpus)
    return `the quote is for ${gpusInWords(quote.gpus)} instead of ${request.gpus}`;
  if (quote.maxSeconds !== request.maxSeconds)
    return `the quote is for ${quote.maxSeconds} s instead of ${request.maxSeconds}`;
  if (quote.startTimeoutSeconds > request.startTimeoutSeconds)
    return 'the quote takes longer to start than was allowed';
  if (quote.capacityType !== (lease.spec.capacityType === 'Spot' ? 1 : 0))
    return 'the quote is for another capacity type';
  if (!lease.spec.gpu.models.includes(node.model)) return `the quote promises a ${node.model}`;
  const [partition, promised] = [lease.spec.gpu.partition ?? wholeGpu, node.partition ?? wholeGpu];
  if (promised !== partition) return `the quote promises GPUs of partition ${promised} instead of ${partition}`;
  if (node.offerName !== request.offerName) return `the quote is for offer ${node.offerName}`;
  // The smallest deposit pays for the minimum: a larger one than was offered would lock more than two hours.
  if (quote.minSeconds > offer.spec.minDurationSeconds)
    return `the quote has a minimum of ${quote.minSeconds} s, the offer said ${offer.spec.minDurationSeconds}`;
  if (quote.expiresAt <= now) return 'the quote has expired already; check both clocks';
  if (quote.expiresAt <= now + leastQuoteSeconds)
    return `the quote holds for less than ${leastQuoteSeconds} s, too short to open an escrow`;
  if (quote.expiresAt > now + 7200)
    return 'the quote holds for more than two hours, which would delay a second try by as long';
  if (!same(quote.specHash, world.money.promiseHash(node))) return 'the signed hash is not that of the promised node';
  const requests = lease.spec.resources?.requests;
  for (const [name, wanted, given] of [
    ['cpu', requests?.cpu, node.resources.cpu],
    ['memory', requests?.memory, node.resources.memory],
    ['ephemeral-storage', requests?.['ephemeral-storage'], node.resources.ephemeralStorage],
  ] as const)
    if (wanted !== undefined && parseQuantity(given) < parseQuantity(wanted))
      return `the quote promises ${given} of ${name} instead of ${wanted}`;
  try {
    return await world.money.checkQuote(signed, quote.provider as `0x${string}`, signal);
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

async function vouch(
  world: LeaseWorld,
  { lease, record }: Observed,
  action: Extract<Action, { do: 'vouch' }>,
  signal: AbortSignal,
): Promise<void> {
  const uid = lease.metadata.uid!;
  const { quote, meter, seconds, last } = action;
  const now = world.records.get(uid) ?? record!;
  // Stored before it is signed: after a crash nobody remembers less than was promised.
  await world.records.save(lease, { ...now, meter, signedSeconds: Math.max(now.signedSeconds, seconds) }, signal);
  const gateway = gatewayOf(world, quote);
  if (!gateway) return;
  const signature = await world.money.signVoucher(quote, seconds, last);
  const answer = await gateway.vouch(quote, { servedSeconds: seconds, last, signature }, signal);
  if (!answer.ok) {
    if (answer.kind === 'refused') world.events.event(lease, 'Warning', answer.reason, answer.message);
    world.log.warn(
      { lease: lease.metadata.name, namespace: lease.metadata.namespace, seconds, outcome: answer.kind },
      'voucher not acknowledged; it is given again with the next',
    );
    return;
  }
  hintsOf(world, uid).vouchers += 1;
  world.metrics?.vouched(lease, quote.providerName, seconds - now.vouchedSeconds);
  // Who forgets it gives the same voucher once more.
  const after = world.records.get(uid);
  if (after) world.records.keep(uid, { ...after, vouchedSeconds: Math.max(now.vouchedSeconds, seconds) });
}

function endMessage({ record, chain }: Observed): string {
  const escrow = chain?.state === 'known' ? chain.escrow : undefined;
  const quote = record?.quote;
  if (!escrow || !quote) return 'Nothing was paid.';
  const amount = (units: bigint) => `${formatAmount(units, quote.decimals)} ${quote.assetSymbol}`;
  return `${escrow.servedSeconds} s served: ${amount(escrow.claimed - escrow.feeTaken)} paid, ${amount(escrow.feeTaken)} fee, ${amount(escrow.refunded)} refunded.`;
}

/** Until when the deposit pays, by the last chain read; undefined when there was none, which proves nothing new. */
function paidThrough(seen: Observed): Date | undefined {
  const { chain, record, now } = seen;
  if (chain?.state !== 'known') return undefined;
  const { escrow } = chain;
  if (!escrow || escrow.closed || escrow.closingAt !== 0) return new Date(0);
  const served = record ? servedSeconds(meterNow(record, seen)) : 0;
  return new Date(now.getTime() + (paidSeconds(escrow) - served) * 1000);
}
