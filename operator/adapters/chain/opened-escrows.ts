/**
 * The ids of all escrows that were opened in a range of blocks, from the chain's log: the contract keeps no list. Nodes limit
 * how much they search at once; what one refuses is asked for in smaller parts.
 */
import { Interface } from 'ethers';
import type { Address, Hex, Hex32 } from '../../api/messages.ts';
import { leaseEscrow } from '../../contracts/generated/lease-escrow.ts';
import { nextRange } from '../../core/money/sweep.ts';
import { ChainUnavailable, type Rpc, RpcError } from './rpc.ts';

const opened = new Interface(leaseEscrow.abi).getEvent('LeaseOpened')!.topicHash;
const firstRange = 5_000;

export interface OpenedEscrows {
  /** Blocks that were searched for these, both ends included. */
  readonly from: number;
  readonly to: number;
  readonly leaseIds: readonly Hex32[];
}

/** Throws what the node said when it does not even search one block. */
export async function* openedEscrows(
  rpc: Rpc,
  escrow: Address,
  blocks: { readonly from: number; readonly to: number },
  signal?: AbortSignal,
): AsyncGenerator<OpenedEscrows> {
  let range = firstRange;
  for (let from = blocks.from; from <= blocks.to; ) {
    const to = Math.min(blocks.to, from + range - 1);
    const filter = { address: escrow, topics: [opened], fromBlock: toHex(from), toBlock: toHex(to) };
    let logs: readonly { readonly address: string; readonly topics: readonly string[] }[];
    try {
      logs = (await rpc.call<typeof logs | null>('eth_getLogs', [filter], signal)) ?? [];
    } catch (error) {
      signal?.throwIfAborted();
      // A node says in many ways that it was too much, and some only break off.
      const perhapsTooMuch = error instanceof RpcError || error instanceof ChainUnavailable;
      if (!perhapsTooMuch || from === to) throw error;
      range = nextRange(to - from + 1, true);
      continue;
    }
    const ours = logs.filter((log) => log.address.toLowerCase() === escrow.toLowerCase() && log.topics[0] === opened);
    yield { from, to, leaseIds: [...new Set(ours.map((log) => log.topics[1] as Hex32))] };
    from = to + 1;
    range = nextRange(range, false);
  }
}

const toHex = (value: number): Hex => `0x${value.toString(16)}`;
