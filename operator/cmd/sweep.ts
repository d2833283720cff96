/**
 * `gpulease sweep`: finalizes the escrows of a contract that nobody ended. Whoever runs it pays for the gas and gets nothing;
 * depositors get theirs. It keeps nothing: the chain knows what is open, and refuses to finalize twice.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { connectEscrow, type EscrowClient } from '../adapters/chain/escrow-client.ts';
import { KeyError, loadKey } from '../adapters/chain/key.ts';
import { openedEscrows } from '../adapters/chain/opened-escrows.ts';
import {
  createOutbox,
  type Outbox,
  type OutboxProblem,
  type OutboxRecord,
  type Receipt,
} from '../adapters/chain/outbox.ts';
import { ChainUnavailable } from '../adapters/chain/rpc.ts';
import { memoryStore } from '../adapters/chain/store.ts';
import { escrowChain } from '../adapters/gateway/escrow-chains.ts';
import type { Address, Hex, Hex32 } from '../api/messages.ts';
import { formatAmount } from '../core/money/amount.ts';
import { type Abandoned, abandonedOf } from '../core/money/sweep.ts';
import { readText } from './gateway-options.ts';
import { UsageError } from './options.ts';

export interface SweepSettings {
  readonly chain: readonly (readonly [string, string])[];
  readonly escrow: string | undefined;
  readonly fromBlock: number;
  readonly keyFile: string | undefined;
  readonly passwordFile: string | undefined;
  readonly yes: boolean;
  readonly most: number;
  readonly maxFeeGwei: number;
}

export interface SweepParts {
  /** A line for who watches. */
  readonly tell: (line: string) => void;
  readonly now: () => Date;
  /** How long nothing may be mined before it gives up. */
  readonly patienceSeconds?: number;
}

/** Lines for people; the last one is JSON. */
export interface SweepResult {
  readonly lines: readonly string[];
  readonly status: 0 | 1 | 3;
}

/** It may work later; nothing was sent. */
export class NotNow extends Error {
  override readonly name = 'NotNow';
}

/** So many transactions wait for a block at a time. */
const inFlight = 16;
const reads = 100;
const lookSeconds = 1;

export async function sweepEscrows(settings: SweepSettings, parts: SweepParts): Promise<SweepResult> {
  const { tell } = parts;
  const [chainId, urls] = chainOf(settings);
  if (settings.yes && settings.keyFile === undefined)
    throw new UsageError('--yes sends transactions: name the account that pays for them with --key-file FILE');
  const password = settings.passwordFile && readText('password-file', settings.passwordFile).trim();
  const key = settings.keyFile === undefined ? undefined : await keyOf(settings.keyFile, password);
  const client = await connectEscrow({ rpcUrls: urls, chainId, escrow: settings.escrow as Address });
  const { rpc, claimWindowSeconds } = client;

  const head = await client.block('safe');
  if (settings.fromBlock > head.number)
    throw new UsageError(
      `--from-block ${settings.fromBlock} is beyond the safe head of the chain, block ${head.number}`,
    );
  const account = key?.address ?? nobody;
  const outbox = createOutbox({
    rpc,
    key: key ?? { address: account, signTypedData: mayNotSign, signTransaction: mayNotSign },
    store: memoryStore<OutboxRecord>(),
    now: parts.now,
    policy: {
      maxUnmined: inFlight,
      maxFeePerGasCap: BigInt(settings.maxFeeGwei) * 1_000_000_000n,
      // It is in memory, and --most bounds it.
      maxStoredCharacters: Number.MAX_SAFE_INTEGER,
    },
  });
  const chain = escrowChain(client, outbox);

  let opened = 0;
  let seconds = 0;
  const found: Abandoned[] = [];
  search: for await (const { to, leaseIds } of openedEscrows(rpc, client.address, {
    from: settings.fromBlock,
    to: head.number,
  })) {
    opened += leaseIds.length;
    for (let at = 0; at < leaseIds.length; at += reads) {
      for (const seen of await chain.reads(leaseIds.slice(at, at + reads))) {
        const one = abandonedOf(seen, claimWindowSeconds);
        if (one) found.push(one);
        if (found.length >= settings.most) break search;
      }
    }
    const since = Math.floor(parts.now().getTime() / 1000);
    if (since - seconds >= lookSeconds) {
      seconds = since;
      tell(`block ${to} of ${head.number}: ${opened} escrows were opened, ${found.length} are abandoned`);
    }
  }
  const more = found.length >= settings.most;

  const lines: string[] = [];
  const tokens = new Map<string, { readonly symbol: string; readonly decimals: number }>();
  const amount = async (token: Address, units: bigint) => {
    // What was done is told also when the chain, or the token, answers no more.
    const known =
      tokens.get(token) ?? (await client.token(token).catch(() => ({ symbol: `base units of ${token}`, decimals: 0 })));
    tokens.set(token, known);
    return { symbol: known.symbol, text: formatAmount(units, known.decimals) };
  };
  const done = settings.yes
    ? await send(client, outbox, account, found, parts)
    : await estimate(client, account, found, parts);

  const refunds: Record<string, string> = {};
  const sums = new Map<Address, bigint>();
  for (const one of done.finalized) sums.set(one.token, (sums.get(one.token) ?? 0n) + one.refund);
  for (const [token, units] of sums) {
    const { symbol, text } = await amount(token, units);
    refunds[symbol] = refunds[symbol] === undefined ? text : `${refunds[symbol]} + ${text} (${token})`;
  }
  for (const one of found) {
    const { symbol, text } = await amount(one.token, one.refund);
    const what = done.outcomes.get(one.leaseId) ?? 'not tried';
    lines.push(`${one.leaseId}  ${`${text} ${symbol}`.padEnd(24)}to ${one.consumer} or its sponsors  ${what}`);
  }
  const given = Object.entries(refunds).map(([symbol, text]) => `${text} ${symbol}`);
  const back = given.length === 0 ? 'nothing' : given.join(', ');
  const ether = formatAmount(done.costWei, 18);
  lines.push(
    settings.yes
      ? `${done.finalized.length} of ${found.length} abandoned escrows are finalized for ${ether} of the chain's own currency; ${back} went back to depositors, who withdraw it`
      : `${done.finalized.length} of ${found.length} abandoned escrows would be finalized for about ${ether} of the chain's own currency, and ${back} would go back to depositors. Nothing was sent: --yes sends`,
  );
  if (more) lines.push(`only the first ${settings.most} were looked for: run it again for the others, or raise --most`);
  lines.push(
    JSON.stringify({
      chainId,
      escrow: client.address,
      fromBlock: settings.fromBlock,
      toBlock: head.number,
      sent: settings.yes,
      opened,
      abandoned: found.length,
      finalized: done.finalized.length,
      byOthers: done.byOthers,
      refused: done.refused,
      unknown: done.unknown,
      sponsors: done.sponsors,
      gas: String(done.gas),
      costWei: String(done.costWei),
      refunds,
      more,
    }),
  );
  return { lines, status: done.unknown > 0 ? 3 : done.refused > 0 ? 1 : 0 };
}

interface Done {
  readonly finalized: readonly Abandoned[];
  readonly outcomes: ReadonlyMap<string, string>;
  /** Somebody else came first. */
  readonly byOthers: number;
  readonly refused: number;
  /** Sent, and not seen in a block. */
  readonly unknown: number;
  /** Of the refunds, those to others than the consumer: each has a transaction of its own. */
  readonly sponsors: number;
  readonly gas: bigint;
  readonly costWei: bigint;
}

/** What it would cost at the present price of gas, each as the chain would run it now. */
async function estimate(
  client: EscrowClient,
  from: Address,
  found: readonly Abandoned[],
  { tell }: SweepParts,
): Promise<Done> {
  const price = BigInt(await client.rpc.call<Hex>('eth_gasPrice', []));
  const outcomes = new Map<string, string>();
  const finalized: Abandoned[] = [];
  let gas = 0n;
  let [refused, sponsors] = [0, 0];
  for (const [at, one] of found.entries()) {
    if (at > 0 && at % reads === 0) tell(`${at} of ${found.length} are estimated`);
    const call = client.calls.finalize(one.leaseId);
    const refusal = await client.simulate(from, call);
    if (refusal) {
      refused += 1;
      outcomes.set(one.leaseId, `the contract would refuse: ${refusal.message}`);
      continue;
    }
    gas += BigInt(await client.rpc.call<Hex>('eth_estimateGas', [{ ...call, from }, 'latest']));
    // What is left of whose money is known after the close alone, so these are counted with what they cost at most.
    const pieces = (await client.sponsorships(one.leaseId)).length;
    sponsors += pieces;
    gas += BigInt(pieces) * refundGas;
    finalized.push(one);
    outcomes.set(one.leaseId, `finalizable since ${new Date(one.since * 1000).toISOString()}`);
  }
  return { finalized, outcomes, byOthers: 0, refused, unknown: 0, sponsors, gas, costWei: gas * price };
}

/** Of `refundSponsor`, to an account that never had credit. */
const refundGas = 75_000n;

async function send(
  client: EscrowClient,
  outbox: Outbox,
  from: Address,
  found: readonly Abandoned[],
  parts: SweepParts,
): Promise<Done> {
  const count = async (at: string) => Number(await client.rpc.call<Hex>('eth_getTransactionCount', [from, at]));
  // Another sender would take our nonces, and we its.
  const waiting = (await count('pending')) - (await count('latest'));
  if (waiting > 0 && found.length > 0)
    throw new NotNow(
      `${waiting} transactions of ${from} wait for a block: wait until they are mined, or use an account that nobody else sends from`,
    );

  const outcomes = new Map<string, string>();
  const finalized: Abandoned[] = [];
  let [byOthers, refused, unknown, sponsors] = [0, 0, 0, 0];
  let [gas, costWei] = [0n, 0n];
  const pay = ({ receipt }: Ended) => {
    gas += receipt?.gasUsed ?? 0n;
    costWei += receipt ? receipt.gasUsed * receipt.effectiveGasPrice : 0n;
  };

  const closes = found.map((one) => ({ key: one.leaseId, call: client.calls.finalize(one.leaseId), of: one }));
  await sendAll(outbox, closes, parts, async ({ of: one }, ended) => {
    pay(ended);
    if (ended.state === 'mined') {
      finalized.push(one);
      outcomes.set(one.leaseId, `finalized in ${ended.receipt!.hash}`);
    } else if (ended.state === 'unknown') {
      unknown += 1;
      outcomes.set(one.leaseId, ended.why);
    } else if ((await client.lease(one.leaseId).catch(() => undefined))?.closed) {
      byOthers += 1;
      outcomes.set(one.leaseId, 'somebody else closed it first');
    } else {
      refused += 1;
      outcomes.set(one.leaseId, ended.why);
    }
    parts.tell(`${outcomes.size} of ${found.length}: ${one.leaseId} ${outcomes.get(one.leaseId)}`);
  });

  const refunds: Job<{ leaseId: Hex32; to: Address }>[] = [];
  for (const { leaseId } of finalized) {
    const pieces = await client.sponsorships(leaseId).catch(() => undefined);
    if (!pieces) {
      unknown += 1;
      parts.tell(`${leaseId}: whether sponsors get something back could not be read; anyone may call refundSponsor`);
    }
    for (const { index, sponsor, refundable } of pieces ?? [])
      if (refundable > 0n)
        refunds.push({
          key: `${leaseId}/${index}`,
          call: client.calls.refundSponsor(leaseId, index),
          of: { leaseId, to: sponsor },
        });
  }
  await sendAll(outbox, refunds, parts, async ({ of: { leaseId, to } }, ended) => {
    pay(ended);
    if (ended.state === 'mined') sponsors += 1;
    else if (ended.state === 'unknown') unknown += 1;
    // Credited by somebody else in the meantime.
    else if (ended.refusal !== 'NothingToRefund') refused += 1;
    parts.tell(`${leaseId}: refund of sponsor ${to} ${ended.state === 'mined' ? 'credited' : ended.why}`);
  });
  return { finalized, outcomes, byOthers, refused, unknown, sponsors, gas, costWei };
}

interface Job<T> {
  readonly key: string;
  readonly call: { readonly to: Address; readonly data: Hex };
  readonly of: T;
}

interface Ended {
  readonly state: 'mined' | 'refused' | 'unknown';
  readonly receipt?: Receipt;
  readonly refusal?: string;
  /** Where it is not mined. */
  readonly why: string;
}

/**
 * Sends them, some at a time, and tells of each how it ended. A chain that does not answer is waited for, as one is that mines
 * nothing.
 */
async function sendAll<T>(
  outbox: Outbox,
  jobs: readonly Job<T>[],
  parts: SweepParts,
  ended: (job: Job<T>, how: Ended) => Promise<void>,
): Promise<void> {
  const seconds = () => parts.now().getTime() / 1000;
  const waits = new Map<string, Job<T>>();
  let movedAt = seconds();
  let at = 0;
  let silence = '';

  async function step(): Promise<void> {
    while (at < jobs.length && waits.size < inFlight) {
      const job = jobs[at]!;
      const submitted = await outbox.submit({ key: job.key, ...job.call });
      at += 1;
      if (submitted.outcome === 'accepted') {
        waits.set(job.key, job);
        continue;
      }
      const { name, message } = submitted.refusal;
      await ended(job, { state: 'refused', refusal: name, why: message });
      // Who cannot pay for this one cannot pay for the next.
      if (name === 'PayerOutOfGas') at = jobs.length;
    }
    await outbox.tick();
    for (const [key, job] of waits) {
      const entry = await outbox.state(key);
      if (!entry?.receipt && entry?.state !== 'lost') continue;
      waits.delete(key);
      movedAt = seconds();
      const state = entry.state === 'mined' ? 'mined' : 'refused';
      const why = `transaction ${entry.hash} had no effect: run the sweep again`;
      await ended(job, { state, receipt: entry.receipt, why });
    }
  }

  while ((at < jobs.length || waits.size > 0) && seconds() - movedAt <= (parts.patienceSeconds ?? 600)) {
    try {
      await step();
    } catch (error) {
      if (!(error instanceof ChainUnavailable)) throw error;
      silence = error.message;
    }
    if (at < jobs.length || waits.size > 0) await sleep(lookSeconds * 100);
  }
  for (const [key, job] of waits) {
    const entry = await outbox.state(key);
    const problem = entry?.problem === undefined ? '' : `; ${problems[entry.problem]}`;
    const why = `transaction ${entry?.hash} is not mined yet${problem}: run the sweep again later`;
    await ended(job, { state: 'unknown', why });
  }
  for (const job of jobs.slice(at)) await ended(job, { state: 'unknown', why: `not tried: ${silence}` });
}

const problems: Readonly<Record<OutboxProblem, string>> = {
  PayerOutOfGas: 'the account cannot pay for it',
  FeeCapReached: 'gas costs more than --max-fee-gwei',
};

function chainOf(settings: SweepSettings): readonly [number, readonly string[]] {
  const { chain, escrow } = settings;
  if (escrow === undefined) throw new UsageError('name the contract with --escrow ADDRESS');
  const [first, ...others] = chain;
  if (first === undefined || others.length > 0)
    throw new UsageError('name the chain, and only that one, with --chain ID=URL');
  const chainId = Number(first[0]);
  if (!Number.isSafeInteger(chainId) || chainId < 1)
    throw new UsageError(`--chain ${first[0]}=…: the id of a chain is a whole number from 1 on`);
  return [chainId, first[1].split(',')];
}

async function keyOf(file: string, password: string | undefined) {
  try {
    return await loadKey(file, password);
  } catch (error) {
    if (error instanceof KeyError) throw new UsageError(error.message);
    throw error;
  }
}

/** Whose balance an estimate does not look at. */
const nobody: Address = `0x${'0'.repeat(39)}1`;
const mayNotSign = () => {
  throw new Error('without --yes nothing is signed');
};
