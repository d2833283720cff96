/**
 * A chain around the model of the contract: blocks, a safe head that lags, a pool from which transactions fall out, and
 * reorganisations that forget what was said and say it in another order. Everything it ever said is remembered for the
 * checks, which nobody else may read.
 */
import { Interface, type ParamType } from 'ethers';
import { type Rpc, RpcError } from '../../operator/adapters/chain/rpc.ts';
import type { Address, Hex, Hex32 } from '../../operator/api/messages.ts';
import { gpuToken } from '../../operator/contracts/generated/gpu-token.ts';
import { leaseEscrow } from '../../operator/contracts/generated/lease-escrow.ts';
import { zeroHash } from '../../operator/core/allocation/quote.ts';
import { callEscrow, type EscrowCall, type EscrowModel, newEscrowModel } from '../../operator/core/money/model.ts';
import { addressOf, digest, walletKey } from './keys.ts';
import type { Network, Place } from './network.ts';
import type { Random } from './random.ts';
import type { Party, Timeline } from './timeline.ts';

export const chainId = 31337;
export const escrowAddress = addressOf('escrow');
export const usdc = addressOf('usdc');
export const feeRecipient = addressOf('fees');
export const claimWindowSeconds = 60;
const owner = addressOf('owner');

export type ChainCall = EscrowCall | { readonly do: 'approve'; readonly from: Address; readonly amount: bigint };

interface Tx {
  readonly hash: Hex32;
  readonly from: Address;
  readonly nonce: number;
  readonly fee: bigint;
  readonly call: ChainCall;
}

export interface State {
  readonly escrow: EscrowModel;
  readonly nonces: ReadonlyMap<Address, number>;
  readonly balances: ReadonlyMap<Address, bigint>;
  readonly allowances: ReadonlyMap<Address, bigint>;
}

export interface Block {
  readonly number: number;
  readonly hash: Hex32;
  readonly timestamp: number;
  readonly state: State;
  readonly txs: readonly { readonly tx: Tx; readonly status: 0 | 1; readonly refusal?: string }[];
}

export interface SimChain {
  readonly head: Block;
  readonly safe: Block;
  readonly poolSize: number;
  /** What may go wrong with blocks: transactions left out of the next one, dropped, or put in another order. */
  restless: boolean;
  mine(): void;
  /** Undoes blocks down to the safe head at most, and builds others. Returns how many were undone. */
  reorganise(depth: number): number;
  /** Forgets what waits. Returns how many. */
  dropPool(): number;
  onBlock(handler: (block: Block, orphaned: readonly Block[]) => void): void;
  key(address: Address): ReturnType<typeof walletKey>;
  rpc(network: Network, party: Party, place: Place): Rpc;
}

export const encode = (call: ChainCall): { to: Address; data: Hex } => ({
  to: escrowAddress,
  data: `0x${Buffer.from(JSON.stringify(call, (_, value) => (typeof value === 'bigint' ? `bigint:${value}` : value))).toString('hex')}`,
});
const decode = (data: string): ChainCall =>
  JSON.parse(Buffer.from(data.slice(2), 'hex').toString(), (_, value) =>
    typeof value === 'string' && value.startsWith('bigint:') ? BigInt(value.slice(7)) : value,
  );

const errors = new Interface([...leaseEscrow.abi, ...gpuToken.abi].filter((item) => item.type === 'error'));
/** A revert as a node tells it, with empty arguments: who reads them is tested elsewhere. */
function revert(name: string): RpcError {
  const fragment = errors.getError(name);
  if (!fragment) return new RpcError(3, `execution reverted: ${name}`);
  const empty = (type: ParamType) =>
    type.type === 'address' ? addressOf('nobody') : type.type === 'bytes32' ? zeroHash : 0;
  return new RpcError(3, 'execution reverted', errors.encodeErrorResult(fragment, fragment.inputs.map(empty)) as Hex);
}

const hex = (value: number | bigint): Hex => `0x${value.toString(16)}`;

export function simChain(
  timeline: Timeline,
  random: Random,
  options: { readonly safeLag: number; readonly funds: ReadonlyMap<Address, bigint> },
): SimChain {
  const seconds = () => Math.floor(timeline.nowMs / 1000);
  let forks = 0;
  const genesis: Block = {
    number: 1,
    hash: digest('block', 1),
    timestamp: seconds(),
    txs: [],
    state: {
      escrow: newEscrowModel({ networkId: zeroHash, owner, feeRecipient, claimWindowSeconds }),
      nonces: new Map(),
      balances: options.funds,
      allowances: new Map(),
    },
  };
  const allowed = callEscrow(
    genesis.state.escrow,
    { do: 'setToken', from: owner, token: usdc, rule: { allowed: true, feeBps: 200 } },
    genesis.timestamp,
  );
  if (!allowed.ok) throw new Error(allowed.refusal);
  let blocks: Block[] = [{ ...genesis, state: { ...genesis.state, escrow: allowed.state } }];
  let pool: Tx[] = [];
  const signed = new Map<string, Tx>();
  const handlers: ((block: Block, orphaned: readonly Block[]) => void)[] = [];
  const head = () => blocks.at(-1)!;
  const safe = () => blocks[Math.max(0, blocks.length - 1 - options.safeLag)]!;

  function execute(state: State, call: ChainCall, timestamp: number): { state: State } | { refusal: string } {
    if (call.do === 'approve')
      return { state: { ...state, allowances: new Map(state.allowances).set(call.from, call.amount) } };
    const pays = call.do === 'open' ? call.deposit : call.do === 'topUp' ? call.amount : 0n;
    const result = callEscrow(state.escrow, call, timestamp);
    if (!result.ok) return { refusal: result.refusal };
    const balance = state.balances.get(call.from) ?? 0n;
    if (pays > balance) return { refusal: 'ERC20InsufficientBalance' };
    if (pays > (state.allowances.get(call.from) ?? 0n)) return { refusal: 'ERC20InsufficientAllowance' };
    const gets = call.do === 'withdraw' ? (state.escrow.credits.get(`${call.token}/${call.from}`) ?? 0n) : 0n;
    return {
      state: {
        ...state,
        escrow: result.state,
        balances: new Map(state.balances).set(call.from, balance - pays + gets),
      },
    };
  }

  function build(leaveOut: number, atSeconds = seconds()): Block {
    const parent = head();
    const timestamp = Math.max(parent.timestamp + 1, atSeconds);
    let { state } = parent;
    const txs: { tx: Tx; status: 0 | 1; refusal?: string }[] = [];
    // In any order across accounts; of one account, by nonce.
    const order = [...pool].map((tx) => ({ tx, at: random.next() })).sort((a, b) => a.at - b.at);
    const late = new Set<Address>();
    for (let progress = true; progress; ) {
      progress = false;
      for (const { tx } of order) {
        if (!pool.includes(tx) || late.has(tx.from) || (state.nonces.get(tx.from) ?? 0) !== tx.nonce) continue;
        if (random.chance(leaveOut)) {
          late.add(tx.from);
          continue;
        }
        const done = execute(state, tx.call, timestamp);
        const base = 'state' in done ? done.state : state;
        state = { ...base, nonces: new Map(base.nonces).set(tx.from, tx.nonce + 1) };
        txs.push('state' in done ? { tx, status: 1 } : { tx, status: 0, refusal: done.refusal });
        pool = pool.filter((one) => one.from !== tx.from || one.nonce !== tx.nonce);
        progress = true;
      }
    }
    const block = {
      number: parent.number + 1,
      hash: digest('block', parent.hash, parent.number + 1, forks),
      timestamp,
      state,
      txs,
    };
    blocks.push(block);
    return block;
  }

  function add(tx: Tx): void {
    const there = pool.find((one) => one.from === tx.from && one.nonce === tx.nonce);
    if (there?.hash === tx.hash) throw new RpcError(-32000, 'already known');
    if (tx.nonce < (head().state.nonces.get(tx.from) ?? 0)) throw new RpcError(-32000, 'nonce too low');
    if (there && tx.fee * 10n < there.fee * 11n) throw new RpcError(-32000, 'replacement transaction underpriced');
    pool = [...pool.filter((one) => one !== there), tx];
  }

  const receiptOf = (hash: string) => {
    for (let i = blocks.length - 1; i >= 0 && i > blocks.length - 400; i--) {
      const block = blocks[i]!;
      for (const { tx, status } of block.txs) if (tx.hash === hash) return { block, status };
    }
    return undefined;
  };

  const blockAt = (tag: unknown) => (tag === 'safe' || tag === 'finalized' ? safe() : head());

  function answer(method: string, params: readonly unknown[]): unknown {
    switch (method) {
      case 'eth_sendRawTransaction': {
        const tx = signed.get(params[0] as string);
        if (!tx) throw new RpcError(-32000, 'invalid transaction');
        if (receiptOf(tx.hash)) throw new RpcError(-32000, 'already known');
        add(tx);
        return tx.hash;
      }
      case 'eth_getTransactionCount': {
        const from = params[0] as Address;
        let count = blockAt(params[1]).state.nonces.get(from) ?? 0;
        if (params[1] === 'pending') while (pool.some((tx) => tx.from === from && tx.nonce === count)) count++;
        return hex(count);
      }
      case 'eth_getBlockByNumber': {
        const { number, hash, timestamp } = blockAt(params[0]);
        return { number: hex(number), hash, timestamp: hex(timestamp), baseFeePerGas: hex(1_000_000_000) };
      }
      case 'eth_maxPriorityFeePerGas':
        return hex(1_000_000_000);
      case 'eth_getBalance':
        return hex(10n ** 18n);
      case 'eth_estimateGas':
        return hex(200_000);
      case 'eth_getTransactionReceipt': {
        const found = receiptOf(params[0] as string);
        return (
          found && {
            transactionHash: params[0],
            blockNumber: hex(found.block.number),
            blockHash: found.block.hash,
            gasUsed: hex(100_000),
            effectiveGasPrice: hex(1),
            status: hex(found.status),
          }
        );
      }
      case 'eth_getTransactionByHash': {
        const known = pool.some((tx) => tx.hash === params[0]) || receiptOf(params[0] as string);
        return known ? { hash: params[0] } : null;
      }
      default:
        throw new RpcError(-32601, `the simulated chain does not know ${method}`);
    }
  }

  return {
    restless: false,
    get head() {
      return head();
    },
    get safe() {
      return safe();
    },
    get poolSize() {
      return pool.length;
    },
    mine() {
      const block = build(this.restless ? 0.25 : 0);
      for (const handler of handlers) handler(block, []);
    },
    reorganise(depth) {
      const undone = Math.min(depth, options.safeLag, blocks.length - 1);
      if (undone === 0) return 0;
      const orphaned = blocks.slice(-undone);
      blocks = blocks.slice(0, -undone);
      forks++;
      // Most come again by themselves; of some, no node has kept a copy.
      for (const { txs } of orphaned)
        for (const { tx } of txs)
          if (random.chance(0.75) && !pool.some((one) => one.from === tx.from && one.nonce === tx.nonce)) pool.push(tx);
      // In the time of those that were undone, so that the chain's clock does not run ahead.
      const from = head().timestamp;
      for (let i = 1; i <= undone + 1; i++) build(0.5, from + Math.floor(((seconds() - from) * i) / (undone + 1)));
      for (const handler of handlers) handler(head(), orphaned);
      return undone;
    },
    dropPool() {
      const dropped = pool.length;
      pool = [];
      return dropped;
    },
    onBlock: (handler) => void handlers.push(handler),
    key: (address) =>
      walletKey(address, (raw, hash, tx) => {
        const call = tx.to === address ? undefined : decode(tx.data);
        signed.set(raw, {
          hash,
          from: address,
          nonce: tx.nonce,
          fee: tx.maxFeePerGas,
          // An empty transfer to oneself fills a gap.
          call: call ?? { do: 'approve', from: address, amount: head().state.allowances.get(address) ?? 0n },
        });
      }),
    rpc(network, party, place) {
      return {
        chainId,
        call: async <T>(method: string, params: readonly unknown[], signal?: AbortSignal) =>
          (await network.call(party, place, method.replace('eth_', ''), () => answer(method, params), signal)) as T,
        codeOf: async () => '0x00',
        contractCall: ({ data }, _block, signal) =>
          network.call(
            party,
            place,
            'call',
            () => {
              const done = execute(head().state, decode(data), head().timestamp);
              if ('refusal' in done) throw revert(done.refusal);
              return '0x' as Hex;
            },
            signal,
          ),
      };
    },
  };
}
