/**
 * The only writer of one account's transactions.
 *
 *   submit:  seen before? → would the chain refuse? → nonce → sign → STORE → broadcast
 *   tick:    what is mined, safe, dropped, stuck, missing → rebroadcast the same bytes, replace by fee, cancel, fill a gap
 *
 * Invariant: no transaction is broadcast that is not stored. A crash at any point leaves either nothing, or bytes that the
 * next tick broadcasts again; the chain takes a nonce once, so the effect happens once.
 *
 * An intent's key names its effect ("open/<leaseRef>"). Submitting it again gives the entry that is there. Final entries
 * are kept for a while and then pruned, so an effect must also be refused by its contract when it comes twice, or its key
 * be asked for only while the chain shows that the effect is missing.
 */
import { Transaction } from 'ethers';
import type { Address, Hex, Hex32 } from '../../api/messages.ts';
import { type Spent, transactions, withSpent } from '../../core/wallet/spend.ts';
import type { ChainKey } from './key.ts';
import { decodeRefusal, type Refusal } from './refusal.ts';
import { ChainUnavailable, type Rpc, RpcError } from './rpc.ts';
import type { Store } from './store.ts';

/**
 * stored: signed and kept, perhaps never sent. broadcast: a node took it. mined, reverted: in a block at the head; final
 * once `receipt.safe`. lost: another transaction used the nonce, one that cancels it for example, so this one can never be
 * mined. A key that is lost, or reverted and safe, had no effect and may be submitted again; it is simulated first, as any
 * other.
 */
export type OutboxState = 'stored' | 'broadcast' | 'mined' | 'reverted' | 'lost';

export interface Receipt {
  readonly hash: Hex32;
  readonly blockNumber: number;
  readonly blockHash: Hex32;
  readonly gasUsed: bigint;
  readonly effectiveGasPrice: bigint;
  readonly status: 0 | 1;
  /** At or below the chain's safe head: no reorganisation takes it back. */
  readonly safe: boolean;
}

/** What a person has to mend before a transaction that is signed can be mined. */
export type OutboxProblem = 'PayerOutOfGas' | 'FeeCapReached';

export interface OutboxEntry {
  readonly key: string;
  readonly state: OutboxState;
  readonly nonce: number;
  readonly to: Address;
  /** The newest transaction, and all that were signed for this nonce, oldest first. */
  readonly hash: Hex32;
  readonly hashes: readonly Hex32[];
  /** Unix seconds. */
  readonly submittedAt: number;
  readonly sentAt?: number;
  readonly receipt?: Receipt;
  /** An empty transfer is to take its nonce. It may be mined all the same. */
  readonly cancelling?: true;
  /** What the node said to the last broadcast, when it was no. */
  readonly lastError?: string;
  readonly problem?: OutboxProblem;
}

export interface Intent {
  readonly key: string;
  readonly to: Address;
  readonly data: Hex;
  readonly gasLimit?: bigint;
  /** Counted against the limits of a day in the write that stores the transaction. */
  readonly spends?: { readonly what: string; readonly amount: bigint };
}

export type Submitted =
  | { readonly outcome: 'accepted'; readonly entry: OutboxEntry }
  /** Nothing was signed. */
  | { readonly outcome: 'refused'; readonly refusal: Refusal };

export interface Outbox {
  readonly address: Address;
  submit(intent: Intent, signal?: AbortSignal): Promise<Submitted>;
  /** Looks after all that is not final. Call it every few seconds; it asks the chain nothing when all is. */
  tick(signal?: AbortSignal): Promise<void>;
  /**
   * Takes a transaction back that is not mined: an empty transfer of ours gets its nonce, for more fee. Which of the two is mined
   * is the chain's choice; the entry ends lost, or as if it had not been cancelled. Gives what stands there now. Does nothing
   * where nothing can be taken back, and at the highest fee allowed.
   */
  cancel(key: string, signal?: AbortSignal): Promise<OutboxEntry | undefined>;
  state(key: string, signal?: AbortSignal): Promise<OutboxEntry | undefined>;
  entries(signal?: AbortSignal): Promise<readonly OutboxEntry[]>;
  /** Drops a final entry. Throws for any other: its transaction may still be mined. */
  forget(key: string, signal?: AbortSignal): Promise<void>;
}

export interface OutboxPolicy {
  /** Never pay more for a unit of gas, in wei. */
  readonly maxFeePerGasCap: bigint;
  /** Replace what heads the queue and was not mined for so long. */
  readonly bumpAfterSeconds: number;
  readonly maxReplacements: number;
  /** Fill a missing nonce before ours when nobody did for so long. */
  readonly gapAfterSeconds: number;
  /**
   * A transaction whose nonce is used and that no node knows is given up after so long. Nodes behind one address see different
   * heads: what one of them does not know yet is not lost, and sending it anew would make it happen twice.
   */
  readonly lostAfterSeconds: number;
  /** So many may wait for a block. Those that wait to be safe, minutes on some chains, are bounded by their bytes alone. */
  readonly maxUnmined: number;
  /** Of signed bytes in hexadecimal, all together: the store is a Secret, which holds a mebibyte. */
  readonly maxStoredCharacters: number;
  readonly keepFinal: number;
}

export const defaultOutboxPolicy: OutboxPolicy = {
  maxFeePerGasCap: 500_000_000_000n,
  bumpAfterSeconds: 30,
  maxReplacements: 10,
  gapAfterSeconds: 30,
  lostAfterSeconds: 60,
  maxUnmined: 64,
  maxStoredCharacters: 600_000,
  keepFinal: 100,
};

/** Points at which a test stops the world. */
export interface OutboxFaults {
  beforeBroadcast?(entry: OutboxEntry): Promise<void> | void;
  afterBroadcast?(entry: OutboxEntry): Promise<void> | void;
}

export interface OutboxOptions {
  readonly rpc: Rpc;
  readonly key: ChainKey;
  readonly store: Store<OutboxRecord>;
  readonly now: () => Date;
  readonly policy?: Partial<OutboxPolicy>;
  /** Says no where an intent would go beyond what may be spent in a day. Absent: nothing is counted. */
  readonly limit?: (spent: readonly Spent[], intent: Intent, nowSeconds: number) => Refusal | undefined;
  readonly faults?: OutboxFaults;
}

/** Plain JSON. */
export interface OutboxRecord {
  readonly chainId: number;
  readonly address: Address;
  readonly entries: readonly StoredEntry[];
  /** What was spent in the last day, where that is limited. */
  readonly spent?: readonly Spent[];
}

export interface StoredEntry {
  readonly key: string;
  readonly state: OutboxState;
  readonly nonce: number;
  readonly to: Address;
  readonly hashes: readonly Hex32[];
  /** Those of `hashes` that are empty transfers in its place. */
  readonly cancels?: readonly Hex32[];
  /** The newest signed bytes; gone once final. */
  readonly raw?: Hex;
  readonly submittedAt: number;
  readonly sentAt?: number;
  /** Since when its nonce is used at the safe head, and nobody knows a receipt of it. */
  readonly missingSince?: number;
  readonly receipt?: Omit<Receipt, 'gasUsed' | 'effectiveGasPrice'> & { gasUsed: string; effectiveGasPrice: string };
  readonly lastError?: string;
}

/** Too much waits. Try later. */
export class OutboxFull extends Error {
  override readonly name = 'OutboxFull';
  readonly terminal = false;
}

/** The stored transactions are another account's or another chain's. */
export class OutboxMismatch extends Error {
  override readonly name = 'OutboxMismatch';
  readonly terminal = true;
}

interface RawReceipt {
  readonly transactionHash: Hex32;
  readonly blockNumber: Hex;
  readonly blockHash: Hex32;
  readonly gasUsed: Hex;
  readonly effectiveGasPrice: Hex;
  readonly status: Hex;
}

interface Fees {
  readonly maxFeePerGas: bigint;
  readonly maxPriorityFeePerGas: bigint;
}

/** Nodes refuse to replace a transaction for less than +10 %; this is a little more. */
const bumpNumerator = 1125n;
const bumpDenominator = 1000n;
const gasOfTransfer = 21_000n;
const gasReserve = 40_000n;
const atTheCap = 'not mined at the highest fee allowed';

export function createOutbox(options: OutboxOptions): Outbox {
  const { rpc, key, store, faults } = options;
  const policy = { ...defaultOutboxPolicy, ...options.policy };
  const from = key.address;
  const nowSeconds = () => Math.floor(options.now().getTime() / 1000);
  const exclusive = mutex();
  let held: { record: OutboxRecord; version: string } | undefined;

  async function load(signal?: AbortSignal): Promise<OutboxRecord> {
    if (!held) {
      const { value, version } = await store.load(signal);
      const record = value ?? { chainId: rpc.chainId, address: from, entries: [] };
      if (record.chainId !== rpc.chainId || record.address.toLowerCase() !== from.toLowerCase()) {
        throw new OutboxMismatch(
          `the stored transactions are of ${record.address} on chain ${record.chainId}, configured are ${from} and ${rpc.chainId}: keep one store for each`,
        );
      }
      held = { record, version };
    }
    return held.record;
  }

  async function save(entries: readonly StoredEntry[], signal?: AbortSignal, spent?: readonly Spent[]): Promise<void> {
    const { record, version } = held!;
    const next = { ...record, entries: prune(entries, policy.keepFinal), ...(spent && { spent }) };
    try {
      held = { record: next, version: await store.save(next, version, signal) };
    } catch (error) {
      // Written by another, or not known whether it was written: what is in memory can no longer be trusted.
      held = undefined;
      throw error;
    }
  }

  async function put(entry: StoredEntry, signal?: AbortSignal, spent?: readonly Spent[]): Promise<void> {
    const others = (await load(signal)).entries.filter((other) => other.key !== entry.key);
    await save([...others, entry], signal, spent);
  }

  /** Sends the stored bytes. A node that says no, or nothing, leaves them for the next tick. */
  async function broadcast(entry: StoredEntry, signal?: AbortSignal): Promise<StoredEntry> {
    await faults?.beforeBroadcast?.(shown(entry));
    let sent: StoredEntry;
    try {
      await rpc.call<Hex>('eth_sendRawTransaction', [entry.raw!], signal);
      sent = sentNow(entry, nowSeconds());
    } catch (error) {
      if (error instanceof RpcError && isKnownAlready(error)) sent = sentNow(entry, nowSeconds());
      else sent = { ...entry, lastError: messageOf(error) };
    }
    await faults?.afterBroadcast?.(shown(sent));
    return sent;
  }

  async function count(block: 'latest' | 'pending' | 'safe', signal?: AbortSignal): Promise<number> {
    return Number(await rpc.call<Hex>('eth_getTransactionCount', [from, block], signal));
  }

  async function currentFees(signal?: AbortSignal): Promise<Fees> {
    const block = await rpc.call<{ baseFeePerGas?: Hex } | null>('eth_getBlockByNumber', ['latest', false], signal);
    if (!block?.baseFeePerGas) throw new ChainUnavailable(`chain ${rpc.chainId} names no base fee: EIP-1559 is needed`);
    let priority = 1_000_000_000n;
    try {
      priority = BigInt(await rpc.call<Hex>('eth_maxPriorityFeePerGas', [], signal));
    } catch (error) {
      // Not every node suggests a tip; a gwei is then what most accept.
      if (!(error instanceof RpcError)) throw error;
    }
    // Twice the base fee stays valid through six full blocks.
    return capped({ maxFeePerGas: BigInt(block.baseFeePerGas) * 2n + priority, maxPriorityFeePerGas: priority });
  }

  function capped(fees: Fees): Fees {
    const maxFeePerGas = least(fees.maxFeePerGas, policy.maxFeePerGasCap);
    return { maxFeePerGas, maxPriorityFeePerGas: least(fees.maxPriorityFeePerGas, maxFeePerGas) };
  }

  async function sign(call: { to: Address; data: Hex }, nonce: number, gasLimit: bigint, fees: Fees) {
    const raw = await key.signTransaction({
      type: 2,
      chainId: rpc.chainId,
      nonce,
      gasLimit,
      value: 0n,
      ...call,
      ...fees,
    });
    return { raw, hash: Transaction.from(raw).hash as Hex32 };
  }

  async function submit(intent: Intent, signal?: AbortSignal): Promise<Submitted> {
    const { entries, spent = [] } = await load(signal);
    const known = entries.find((entry) => entry.key === intent.key);
    if (known && !hadNoEffect(known)) return { outcome: 'accepted', entry: shown(known) };
    refuseWhenFull(entries);
    const over = options.limit?.(spent, intent, nowSeconds());
    if (over) return { outcome: 'refused', refusal: over };

    const call = { to: intent.to, data: intent.data };
    let gasLimit: bigint;
    try {
      await rpc.contractCall({ ...call, from }, 'latest', signal);
      const estimate =
        intent.gasLimit ?? BigInt(await rpc.call<Hex>('eth_estimateGas', [{ ...call, from }, 'latest'], signal));
      // Others may come first and make ours dearer, by up to two storage slots that are empty then. What is not used
      // costs nothing.
      gasLimit = intent.gasLimit ?? (estimate * 13n) / 10n + gasReserve;
    } catch (error) {
      const refusal = decodeRefusal(error) ?? outOfGas(error, from);
      if (!refusal) throw error;
      return { outcome: 'refused', refusal };
    }

    const fees = await currentFees(signal);
    const balance = BigInt(await rpc.call<Hex>('eth_getBalance', [from, 'latest'], signal));
    if (balance < gasLimit * fees.maxFeePerGas) {
      return { outcome: 'refused', refusal: payerOutOfGas(from, balance, gasLimit * fees.maxFeePerGas) };
    }

    const own = entries.map((entry) => entry.nonce + 1);
    const nonce = Math.max(await count('pending', signal), ...own);
    const { raw, hash } = await sign(call, nonce, gasLimit, fees);
    const entry: StoredEntry = {
      key: intent.key,
      state: 'stored',
      nonce,
      to: intent.to,
      hashes: [hash],
      raw,
      submittedAt: nowSeconds(),
    };
    const counted = options.limit && [
      { what: transactions, amount: 1n },
      ...(intent.spends === undefined ? [] : [intent.spends]),
    ];
    // An entry that is replaced here is final and had no effect.
    await put(entry, signal, counted && withSpent(spent, counted, nowSeconds()));
    const sent = await broadcast(entry, signal);
    await put(sent, signal);
    return { outcome: 'accepted', entry: shown(sent) };
  }

  function refuseWhenFull(entries: readonly StoredEntry[]): void {
    const unfinished = entries.filter((entry) => !isFinal(entry));
    const characters = unfinished.reduce((sum, entry) => sum + (entry.raw?.length ?? 0), 0);
    const unmined = unfinished.filter((entry) => !entry.receipt).length;
    if (unmined >= policy.maxUnmined)
      throw new OutboxFull(`${unmined} transactions of ${from} are not mined yet: wait until some are`);
    if (characters >= policy.maxStoredCharacters)
      throw new OutboxFull(`${unfinished.length} transactions of ${from} are not final yet: wait until some are`);
  }

  async function tick(signal?: AbortSignal): Promise<void> {
    const { entries } = await load(signal);
    if (entries.every(isFinal)) return;
    const latest = await count('latest', signal);
    const safe = await safeHead(signal);

    for (const entry of entries.filter((one) => !isFinal(one)).sort((one, other) => one.nonce - other.nonce)) {
      let next = await observe(entry, latest, safe, signal);
      if (next.receipt === undefined && next.state !== 'lost' && next.nonce >= latest)
        next = await push(next, latest, signal);
      if (JSON.stringify(next) !== JSON.stringify(entry)) await put(next, signal);
    }
    await fillGaps(latest, signal);
  }

  /** What the chain says of an entry. A transaction that a reorganisation took back counts as broadcast again. */
  async function observe(
    entry: StoredEntry,
    latest: number,
    safe: SafeHead,
    signal?: AbortSignal,
  ): Promise<StoredEntry> {
    if (entry.nonce >= latest && !entry.receipt) return found(entry);
    // A reorganisation that took it back would have given its nonce back too, or is found out when its block is to be safe.
    if (entry.receipt && entry.nonce < latest && entry.receipt.blockNumber > safe.number) return entry;
    for (const hash of entry.hashes.toReversed()) {
      const receipt = await rpc.call<RawReceipt | null>('eth_getTransactionReceipt', [hash], signal);
      if (!receipt) continue;
      if (!entry.cancels?.includes(hash)) return mined(found(entry), receipt, safe.number);
      const { receipt: _, ...cancelled } = found(entry);
      return Number(receipt.blockNumber) <= safe.number ? gone(cancelled) : { ...cancelled, state: 'broadcast' };
    }
    const { receipt: _, ...unmined } = entry;
    const waiting: StoredEntry = entry.receipt ? { ...unmined, state: 'broadcast' } : entry;
    if (safe.nonce <= entry.nonce) return found(waiting);
    // Not ours, and no reorganisation brings ours back: the nonce is gone, once that is what every look has said for a while.
    if (entry.missingSince === undefined) return { ...waiting, missingSince: nowSeconds() };
    return nowSeconds() - entry.missingSince >= policy.lostAfterSeconds ? gone(unmined) : waiting;
  }

  /** Brings a transaction that is not mined on its way: the same bytes if no node has them, more fee if it waits too long. */
  async function push(entry: StoredEntry, latest: number, signal?: AbortSignal): Promise<StoredEntry> {
    const inPool = entry.state !== 'stored' && (await isInPool(entry, signal));
    const waited = nowSeconds() - (entry.sentAt ?? entry.submittedAt);
    // A node that keeps dropping it wants more fee too, but the same bytes get several chances first.
    const dear = waited >= policy.bumpAfterSeconds * (inPool ? 1 : 3) || wantsMoreFee(entry);
    const heads = entry.nonce === latest;
    if (
      !heads ||
      !dear ||
      (entry.state === 'stored' && !wantsMoreFee(entry)) ||
      entry.hashes.length > policy.maxReplacements
    ) {
      return inPool ? entry : broadcast(entry, signal);
    }

    const next = await replace(entry, isCancelled(entry) || (await isDoomed(entry, signal)), signal);
    if (next.raw !== entry.raw || inPool) return next;
    const sent = await broadcast(entry, signal);
    // That no more is paid is the reason, whatever words the node has for it.
    return sent.lastError === undefined ? sent : next;
  }

  /** The same nonce again, for more fee: the same call, or an empty transfer that takes its place. */
  async function replace(entry: StoredEntry, withNothing: boolean, signal?: AbortSignal): Promise<StoredEntry> {
    const old = Transaction.from(entry.raw!);
    const current = await currentFees(signal);
    const fees = capped({
      maxFeePerGas: most(bumped(old.maxFeePerGas!), current.maxFeePerGas),
      maxPriorityFeePerGas: most(bumped(old.maxPriorityFeePerGas!), current.maxPriorityFeePerGas),
    });
    const enough =
      fees.maxFeePerGas >= bumped(old.maxFeePerGas!) && fees.maxPriorityFeePerGas >= bumped(old.maxPriorityFeePerGas!);
    if (!enough) return { ...entry, lastError: `${atTheCap}, ${policy.maxFeePerGasCap} wei a gas` };

    const call = withNothing ? { to: from, data: '0x' as const } : { to: old.to as Address, data: old.data as Hex };
    const { raw, hash } = await sign(call, entry.nonce, withNothing ? gasOfTransfer : old.gasLimit, fees);
    const replaced: StoredEntry = {
      ...entry,
      state: 'stored',
      hashes: [...entry.hashes, hash],
      ...(withNothing && { cancels: [...(entry.cancels ?? []), hash] }),
      raw,
    };
    await put(replaced, signal);
    return broadcast(replaced, signal);
  }

  /** The contract would refuse it for good, if it were mined now: more fee would only buy a revert. */
  async function isDoomed(entry: StoredEntry, signal?: AbortSignal): Promise<boolean> {
    const { to, data } = Transaction.from(entry.raw!);
    try {
      await rpc.contractCall({ to: to as Address, data: data as Hex, from }, 'latest', signal);
      return false;
    } catch (error) {
      if (!(error instanceof RpcError)) throw error;
      return decodeRefusal(error)?.terminal === true;
    }
  }

  async function cancel(name: string, signal?: AbortSignal): Promise<OutboxEntry | undefined> {
    const entry = (await load(signal)).entries.find((one) => one.key === name);
    if (!entry) return undefined;
    const latest = await count('latest', signal);
    if (isFinal(entry) || entry.receipt || isCancelled(entry) || entry.nonce < latest) return shown(entry);
    const next = await replace(entry, true, signal);
    if (JSON.stringify(next) !== JSON.stringify(entry)) await put(next, signal);
    return shown(next);
  }

  async function isInPool(entry: StoredEntry, signal?: AbortSignal): Promise<boolean> {
    return (await rpc.call<object | null>('eth_getTransactionByHash', [entry.hashes.at(-1)], signal)) !== null;
  }

  /** A nonce before ours that nobody will use blocks all of ours: an empty transfer to ourselves uses it. */
  async function fillGaps(latest: number, signal?: AbortSignal): Promise<void> {
    const waiting = (await load(signal)).entries.filter((entry) => !isFinal(entry) && entry.nonce >= latest);
    if (waiting.length === 0) return;
    const oldest = Math.min(...waiting.map((entry) => entry.sentAt ?? entry.submittedAt));
    if (nowSeconds() - oldest < policy.gapAfterSeconds) return;
    const ours = new Set(waiting.map((entry) => entry.nonce));
    const first = Math.min(...ours);
    if (first === latest || (await count('pending', signal)) > latest) return;

    const fees = await currentFees(signal);
    for (let nonce = latest; nonce < Math.min(first, latest + policy.maxUnmined); nonce++) {
      const { raw, hash } = await sign({ to: from, data: '0x' }, nonce, gasOfTransfer, fees);
      const entry: StoredEntry = {
        key: `gap/${nonce}`,
        state: 'stored',
        nonce,
        to: from,
        hashes: [hash],
        raw,
        submittedAt: nowSeconds(),
      };
      await put(entry, signal);
      await put(await broadcast(entry, signal), signal);
    }
  }

  async function safeHead(signal?: AbortSignal): Promise<SafeHead> {
    const block = await rpc.call<{ number: Hex } | null>('eth_getBlockByNumber', ['safe', false], signal);
    return block === null
      ? { number: -1, nonce: -1 }
      : { number: Number(block.number), nonce: await count('safe', signal) };
  }

  return {
    address: from,
    submit: (intent, signal) => exclusive(() => submit(intent, signal)),
    tick: (signal) => exclusive(() => tick(signal)),
    cancel: (name, signal) => exclusive(() => cancel(name, signal)),
    state: (name, signal) =>
      exclusive(async () => {
        const entry = (await load(signal)).entries.find((one) => one.key === name);
        return entry && shown(entry);
      }),
    entries: (signal) => exclusive(async () => (await load(signal)).entries.map(shown)),
    forget: (name, signal) =>
      exclusive(async () => {
        const { entries } = await load(signal);
        const entry = entries.find((one) => one.key === name);
        if (!entry) return;
        if (!isFinal(entry)) throw new Error(`transaction ${name} is not final: it may still be mined`);
        await save(
          entries.filter((one) => one !== entry),
          signal,
        );
      }),
  };
}

interface SafeHead {
  readonly number: number;
  /** Transactions of ours up to the safe head. */
  readonly nonce: number;
}

/** For certain: its nonce went to another, or it reverted where no reorganisation reaches. */
const hadNoEffect = (entry: StoredEntry): boolean =>
  entry.state === 'lost' || (entry.state === 'reverted' && entry.receipt?.safe === true);

/** The newest bytes are an empty transfer. */
const isCancelled = (entry: StoredEntry): boolean => entry.cancels?.includes(entry.hashes.at(-1)!) === true;

function found(entry: StoredEntry): StoredEntry {
  const { missingSince: _, ...rest } = entry;
  return entry.missingSince === undefined ? entry : rest;
}

function gone(entry: StoredEntry): StoredEntry {
  const { raw: _, missingSince: __, lastError: ___, ...rest } = entry;
  return { ...rest, state: 'lost' };
}

const isFinal = (entry: StoredEntry): boolean => entry.state === 'lost' || entry.receipt?.safe === true;

function mined(entry: StoredEntry, receipt: RawReceipt, safeNumber: number): StoredEntry {
  const blockNumber = Number(receipt.blockNumber);
  const safe = blockNumber <= safeNumber;
  if (entry.receipt?.blockHash === receipt.blockHash && entry.receipt.safe === safe) return entry;
  const status = Number(receipt.status) === 1 ? 1 : 0;
  return {
    ...entry,
    state: status === 1 ? 'mined' : 'reverted',
    raw: safe ? undefined : entry.raw,
    lastError: undefined,
    receipt: {
      hash: receipt.transactionHash,
      blockNumber,
      blockHash: receipt.blockHash,
      gasUsed: BigInt(receipt.gasUsed).toString(),
      effectiveGasPrice: BigInt(receipt.effectiveGasPrice).toString(),
      status,
      safe,
    },
  };
}

/** Keeps all that is not final, and the newest of what is. */
function prune(entries: readonly StoredEntry[], keepFinal: number): readonly StoredEntry[] {
  const byNonce = [...entries].sort((one, other) => one.nonce - other.nonce);
  const surplus = byNonce.filter(isFinal).length - keepFinal;
  if (surplus <= 0) return byNonce;
  const dropped = new Set(byNonce.filter(isFinal).slice(0, surplus));
  return byNonce.filter((entry) => !dropped.has(entry));
}

function sentNow(entry: StoredEntry, now: number): StoredEntry {
  // Sending the same bytes again does not make them younger: how long they wait decides on their replacement.
  const sentAt = entry.state === 'stored' ? now : (entry.sentAt ?? now);
  return { ...entry, state: 'broadcast', sentAt, lastError: undefined };
}

function shown(entry: StoredEntry): OutboxEntry {
  const { raw: _, cancels: __, missingSince: ___, receipt, ...rest } = entry;
  const problem = problemOf(entry);
  return {
    ...rest,
    hash: entry.hashes.at(-1)!,
    ...(isCancelled(entry) && { cancelling: true as const }),
    ...(problem && { problem }),
    ...(receipt && {
      receipt: { ...receipt, gasUsed: BigInt(receipt.gasUsed), effectiveGasPrice: BigInt(receipt.effectiveGasPrice) },
    }),
  };
}

/** "Nonce too low" too: then this or another transaction was mined, and its receipt will tell which. */
function isKnownAlready(error: RpcError): boolean {
  return /already known|known transaction|already imported|already exists|nonce too low/i.test(error.message);
}

/** In the node's words: of our own error there is only one. */
function problemOf(entry: StoredEntry): OutboxProblem | undefined {
  if (isFinal(entry) || entry.lastError === undefined) return undefined;
  if (entry.lastError.startsWith(atTheCap)) return 'FeeCapReached';
  return isOutOfGas(entry.lastError) ? 'PayerOutOfGas' : undefined;
}

function wantsMoreFee(entry: StoredEntry): boolean {
  const said = entry.lastError ?? '';
  return said.startsWith(atTheCap) || /underpriced|fee too low|less than block base fee/i.test(said);
}

function outOfGas(error: unknown, account: Address): Refusal | undefined {
  return error instanceof RpcError && isOutOfGas(error.message) ? payerOutOfGas(account) : undefined;
}

const isOutOfGas = (words: string): boolean => /insufficient funds|gas required exceeds allowance/i.test(words);

function payerOutOfGas(account: Address, balance?: bigint, needed?: bigint): Refusal {
  const figures = balance === undefined ? '' : ` (has ${balance} wei, needs up to ${needed})`;
  return {
    name: 'PayerOutOfGas',
    terminal: false,
    message: `${account} cannot pay for gas${figures}: send it some of the chain's own currency`,
    args: { account },
  };
}

function messageOf(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).slice(0, 300);
}

const bumped = (fee: bigint): bigint => (fee * bumpNumerator + bumpDenominator - 1n) / bumpDenominator;
const most = (one: bigint, other: bigint): bigint => (one > other ? one : other);
const least = (one: bigint, other: bigint): bigint => (one < other ? one : other);

/** Runs one task at a time, in the order they came. */
function mutex(): <T>(task: () => Promise<T>) => Promise<T> {
  let last: Promise<unknown> = Promise.resolve();
  return (task) => {
    const mine = last.then(task, task);
    last = mine.catch(() => undefined);
    return mine;
  };
}
