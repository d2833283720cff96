/** The search for openings in a chain's log, over nodes that search no more than they like. */
import { Interface } from 'ethers';
import { describe, expect, test } from 'vitest';
import { openedEscrows } from '../../../../operator/adapters/chain/opened-escrows.ts';
import { ChainUnavailable, type Rpc, RpcError } from '../../../../operator/adapters/chain/rpc.ts';
import type { Address, Hex32 } from '../../../../operator/api/messages.ts';
import { leaseEscrow } from '../../../../operator/contracts/generated/lease-escrow.ts';

const escrow: Address = `0x${'e'.repeat(40)}`;
const topic = new Interface(leaseEscrow.abi).getEvent('LeaseOpened')!.topicHash;
const idAt = (block: number): Hex32 => `0x${block.toString(16).padStart(64, '0')}`;

/** A node that searches `most` blocks at once; an escrow was opened in each block that 777 divides. */
function node(most: number, says: () => Error) {
  const searched: [number, number][] = [];
  const call = async (_: string, [filter]: readonly [{ fromBlock: string; toBlock: string }]) => {
    const [from, to] = [Number(filter.fromBlock), Number(filter.toBlock)];
    if (to - from + 1 > most) throw says();
    searched.push([from, to]);
    const blocks = Array.from({ length: to - from + 1 }, (_, at) => from + at).filter((block) => block % 777 === 0);
    // Nodes are not believed to have filtered.
    const strange = { address: `0x${'d'.repeat(40)}`, topics: [topic, idAt(1)] };
    return [...blocks.map((block) => ({ address: escrow, topics: [topic, idAt(block)] })), strange];
  };
  return { rpc: { chainId: 1, call } as unknown as Rpc, searched };
}

async function idsOf(rpc: Rpc, from: number, to: number): Promise<Hex32[]> {
  const ids: Hex32[] = [];
  for await (const found of openedEscrows(rpc, escrow, { from, to })) ids.push(...found.leaseIds);
  return ids;
}

describe('openings', () => {
  const expected = Array.from({ length: 129 }, (_, at) => idAt(at * 777)).filter((id) => Number(id) <= 100_000);
  test.each<[string, number, () => Error]>([
    ['of a node that searches all', Number.POSITIVE_INFINITY, () => new Error('never')],
    ['of one that refuses more than 1,000 blocks', 1000, () => new RpcError(-32000, 'block range too large')],
    ['of one that breaks off instead', 700, () => new ChainUnavailable('no answer')],
  ])('%s are found, each block searched once', async (_, most, says) => {
    const { rpc, searched } = node(most, says);
    expect(await idsOf(rpc, 0, 100_000)).toEqual(expected);
    for (const [at, [from]] of searched.entries()) expect(from).toBe(at === 0 ? 0 : searched[at - 1]![1] + 1);
  });

  test('cannot be told when a node does not search a single block', async () => {
    await expect(idsOf(node(0, () => new ChainUnavailable('away')).rpc, 5, 9)).rejects.toThrow('away');
  });
});
