/**
 * The transactions that touched one escrow, from the chain's log. Who closed it, and in which transaction, only the log
 * tells: it was the provider's as a rule, and not ours.
 *
 * Public nodes limit the range of blocks that they search at once. What they refuse is asked for in halves, within a budget;
 * what is left unanswered then is left out, and the trail says that it is not whole. Nodes that do not answer at all throw:
 * later they may.
 */
import { Interface } from 'ethers';
import type { Address, Hex, Hex32 } from '../../api/messages.ts';
import { maxReceiptTransactions, type ReceiptTransaction } from '../../api/receipt.ts';
import { leaseEscrow } from '../../contracts/generated/lease-escrow.ts';
import { type Rpc, RpcError } from './rpc.ts';

export interface Trail {
  readonly transactions: ReceiptTransaction[];
  readonly all: boolean;
}

interface ChainLog {
  readonly address: string;
  readonly topics: string[];
  readonly transactionHash: Hex32;
  readonly blockNumber: Hex;
  readonly logIndex: Hex;
}

const escrowAbi = new Interface(leaseEscrow.abi);
const mostSearches = 48;

/** `openedAt`, Unix seconds: nothing before it is looked at. Only what is safe from reorganisations is named. */
export async function settlementTrail(
  rpc: Rpc,
  escrow: Address,
  leaseId: Hex32,
  openedAt: number,
  signal?: AbortSignal,
): Promise<Trail> {
  const safe = await blockAt(rpc, 'safe', signal);
  if (!safe) throw new Error(`chain ${rpc.chainId} has no safe block yet`);
  const first = await firstBlockSince(rpc, openedAt, safe, signal);
  const logs: ChainLog[] = [];
  let searches = 0;
  let all = first.remembered;
  // The newest part first: the close is what people look for.
  const ranges: [number, number][] = [[first.number, safe.number]];
  for (let range = ranges.pop(); range; range = ranges.pop()) {
    const [from, to] = range;
    if (searches >= mostSearches) {
      all = false;
      break;
    }
    searches += 1;
    try {
      const filter = { address: escrow, topics: [null, leaseId], fromBlock: toHex(from), toBlock: toHex(to) };
      logs.push(...((await rpc.call<ChainLog[] | null>('eth_getLogs', [filter], signal)) ?? []));
    } catch (error) {
      if (!(error instanceof RpcError)) throw error;
      if (from === to) {
        all = false;
        break;
      }
      const middle = Math.floor((from + to) / 2);
      ranges.push([from, middle], [middle + 1, to]);
    }
  }
  const transactions = inOrder(logs.filter((log) => touchedBy(log, escrow, leaseId)));
  if (transactions.length <= maxReceiptTransactions) return { transactions, all };
  return { transactions: [transactions[0]!, ...transactions.slice(1 - maxReceiptTransactions)], all: false };
}

/** Whether a log entry is the contract's, and about this escrow. */
export function touchedBy(log: { address: string; topics: string[] }, escrow: Address, leaseId: Hex32): boolean {
  return log.address.toLowerCase() === escrow.toLowerCase() && log.topics[1]?.toLowerCase() === leaseId.toLowerCase();
}

function inOrder(logs: readonly ChainLog[]): ReceiptTransaction[] {
  const sorted = [...logs].sort(
    (a, b) => Number(a.blockNumber) - Number(b.blockNumber) || Number(a.logIndex) - Number(b.logIndex),
  );
  const byHash = new Map<string, ReceiptTransaction>();
  for (const { transactionHash, blockNumber, topics } of sorted) {
    const event = escrowAbi.getEvent(topics[0] ?? '')?.name ?? 'Unknown';
    const known = byHash.get(transactionHash);
    if (!known)
      byHash.set(transactionHash, { hash: transactionHash, blockNumber: Number(blockNumber), events: [event] });
    else if (known.events.length < 8) known.events.push(event);
  }
  return [...byHash.values()];
}

interface BlockTime {
  readonly number: number;
  readonly timestamp: number;
}

/** Undefined: the node knows no such block, or no more. */
async function blockAt(rpc: Rpc, at: number | 'safe', signal?: AbortSignal): Promise<BlockTime | undefined> {
  const tag = typeof at === 'number' ? toHex(at) : at;
  try {
    const block = await rpc.call<{ number: Hex; timestamp: Hex } | null>('eth_getBlockByNumber', [tag, false], signal);
    return block === null ? undefined : { number: Number(block.number), timestamp: Number(block.timestamp) };
  } catch (error) {
    if (error instanceof RpcError) return undefined;
    throw error;
  }
}

/** Times never go back from block to block, so that they can be searched by halves. What a node has forgotten is older. */
async function firstBlockSince(rpc: Rpc, seconds: number, safe: BlockTime, signal?: AbortSignal) {
  let [low, high] = [0, safe.number];
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    const block = await blockAt(rpc, middle, signal);
    if (!block || block.timestamp < seconds) low = middle + 1;
    else high = middle;
  }
  // Found among blocks that the node has on both sides of it, or at the very beginning.
  return { number: low, remembered: low === 0 || (await blockAt(rpc, low - 1, signal)) !== undefined };
}

const toHex = (value: number): Hex => `0x${value.toString(16)}`;
