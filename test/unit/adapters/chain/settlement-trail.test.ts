/** The transactions of an escrow, from nodes that limit, forget, or say nothing. */
import { Interface } from 'ethers';
import { describe, expect, test } from 'vitest';
import { ChainUnavailable, type Rpc, RpcError } from '../../../../operator/adapters/chain/rpc.ts';
import { settlementTrail } from '../../../../operator/adapters/chain/settlement-trail.ts';
import type { Address, Hex32 } from '../../../../operator/api/messages.ts';
import { leaseEscrow } from '../../../../operator/contracts/generated/lease-escrow.ts';

const abi = new Interface(leaseEscrow.abi);
const escrow: Address = `0x${'e'.repeat(40)}`;
const leaseId: Hex32 = `0x${'2'.repeat(64)}`;
const safe = 100_000;

interface Event {
  readonly block: number;
  readonly name: string;
  readonly tx: string;
  readonly address?: string;
}
const log = ({ block, name, tx, address = escrow }: Event, index: number) => ({
  address,
  topics: [abi.getEvent(name)!.topicHash, leaseId],
  transactionHash: `0x${tx.repeat(64).slice(0, 64)}`,
  blockNumber: `0x${block.toString(16)}`,
  logIndex: `0x${index.toString(16)}`,
});

/** A block a second from second 1000 on. */
function chainOf(events: readonly Event[], limits: { range?: number; oldest?: number; silent?: boolean } = {}) {
  const searches: [number, number][] = [];
  const rpc = {
    chainId: 1,
    async call(method: string, [first]: [never]) {
      if (method === 'eth_getBlockByNumber') {
        const number = first === 'safe' ? safe : Number(first);
        if (limits.oldest !== undefined && number < limits.oldest) throw new RpcError(-32000, 'pruned');
        return { number: `0x${number.toString(16)}`, timestamp: `0x${(1000 + number).toString(16)}` };
      }
      if (limits.silent) throw new ChainUnavailable('nobody');
      const { fromBlock, toBlock } = first as { fromBlock: string; toBlock: string };
      const [from, to] = [Number(fromBlock), Number(toBlock)];
      searches.push([from, to]);
      if (to - from + 1 > (limits.range ?? Number.POSITIVE_INFINITY)) throw new RpcError(-32005, 'range too large');
      return events.map(log).filter(({ blockNumber }) => Number(blockNumber) >= from && Number(blockNumber) <= to);
    },
  };
  return { rpc: rpc as unknown as Rpc, searches };
}

const life: Event[] = [
  { block: 90_000, name: 'LeaseOpened', tx: '1' },
  { block: 95_000, name: 'LeaseToppedUp', tx: '2' },
  { block: 99_000, name: 'LeaseSettled', tx: '3' },
  { block: 99_900, name: 'LeaseClosed', tx: '4' },
];
const trailOf = ({ rpc }: { rpc: Rpc }) => settlementTrail(rpc, escrow, leaseId, 91_000);
const eventsOf = (trail: Awaited<ReturnType<typeof trailOf>>) => trail.transactions.flatMap(({ events }) => events);

describe('the trail of an escrow', () => {
  test('is found with one search, which begins where the escrow was opened', async () => {
    const chain = chainOf(life);
    const trail = await trailOf(chain);
    expect(eventsOf(trail)).toEqual(['LeaseOpened', 'LeaseToppedUp', 'LeaseSettled', 'LeaseClosed']);
    expect(trail.transactions[0]).toEqual({
      hash: `0x${'1'.repeat(64)}`,
      blockNumber: 90_000,
      events: ['LeaseOpened'],
    });
    expect([trail.all, chain.searches]).toEqual([true, [[90_000, safe]]]);
  });

  test('is whole where nodes take small ranges only', async () => {
    const chain = chainOf(life, { range: 1000 });
    const trail = await trailOf(chain);
    expect([eventsOf(trail).length, trail.all]).toEqual([4, true]);
    expect(chain.searches.length).toBeLessThanOrEqual(48);
  });

  test('has the close, and says that it is not whole, where ranges are too small to search all', async () => {
    const chain = chainOf(life, { range: 200 });
    const trail = await trailOf(chain);
    expect(eventsOf(trail)).toContain('LeaseClosed');
    expect(eventsOf(trail)).not.toContain('LeaseOpened');
    expect([trail.all, chain.searches.length]).toEqual([false, 48]);
  });

  test('says that it is not whole where a node searches nothing', async () => {
    expect(await trailOf(chainOf(life, { range: 0 }))).toEqual({ transactions: [], all: false });
  });

  test('is searched for as far back as a node remembers, and says that it is not whole', async () => {
    const chain = chainOf(life, { oldest: 94_000 });
    const trail = await trailOf(chain);
    expect([eventsOf(trail), trail.all]).toEqual([['LeaseToppedUp', 'LeaseSettled', 'LeaseClosed'], false]);
    expect(chain.searches).toEqual([[94_000, safe]]);
  });

  test('names a transaction once, with all that it did', async () => {
    const trail = await trailOf(
      chainOf([
        { block: 99_900, name: 'LeaseSettled', tx: '4' },
        { block: 99_900, name: 'LeaseClosed', tx: '4' },
      ]),
    );
    expect(trail.transactions).toMatchObject([{ events: ['LeaseSettled', 'LeaseClosed'] }]);
  });

  test('takes no word of another contract', async () => {
    const other = { block: 99_000, name: 'LeaseClosed', tx: '9', address: `0x${'f'.repeat(40)}` };
    expect((await trailOf(chainOf([other]))).transactions).toEqual([]);
  });

  test('keeps the first and the last of very many', async () => {
    const many = Array.from({ length: 200 }, (_, i) => ({
      block: 90_000 + i,
      name: i === 0 ? 'LeaseOpened' : i === 199 ? 'LeaseClosed' : 'LeaseSettled',
      tx: i.toString(16).padStart(8, '0'),
    }));
    const trail = await trailOf(chainOf(many));
    expect([trail.transactions.length, trail.all]).toEqual([64, false]);
    expect(eventsOf(trail).at(0)).toBe('LeaseOpened');
    expect(eventsOf(trail).at(-1)).toBe('LeaseClosed');
  });

  test('is unknown, and not empty, while nobody answers', async () => {
    await expect(trailOf(chainOf(life, { silent: true }))).rejects.toThrow('nobody');
  });
});
