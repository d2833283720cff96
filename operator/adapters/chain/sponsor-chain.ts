/** A sponsor's sight of one contract, and its transactions to it: others' escrows found, topped up, and what is left taken back. */
import { Interface, zeroPadValue } from 'ethers';
import type { Address, Hex, Hex32 } from '../../api/messages.ts';
import { leaseEscrow } from '../../contracts/generated/lease-escrow.ts';
import { intents } from '../../core/lease/observed.ts';
import type { Escrow } from '../../core/money/escrow.ts';
import { type Call, connectEscrow, type TokenInfo } from './escrow-client.ts';
import type { Outbox } from './outbox.ts';
import { type Rpc, RpcError } from './rpc.ts';

export interface Piece {
  readonly index: number;
  readonly amount: bigint;
  /** Zero while the escrow is open. */
  readonly refundable: bigint;
}

const abi = new Interface(leaseEscrow.abi);
const opened = abi.getEvent('LeaseOpened')!.topicHash;
/** As many blocks as public nodes search at once, and so many searches in one look. */
const blocksPerSearch = 2000;
const mostSearches = 25;
/** Strangers may top up, too: further pieces of one escrow are not looked at. */
const mostPieces = 256;

export type SponsorChainAdapter = Awaited<ReturnType<typeof connectSponsorChain>>;

/** Throws as `connectEscrow` does. */
export async function connectSponsorChain(
  parts: { readonly rpc: Rpc; readonly escrow: Address; readonly token: Address; readonly outbox: Outbox },
  signal?: AbortSignal,
) {
  const { rpc, escrow, token, outbox } = parts;
  const client = await connectEscrow({ rpc, escrow }, signal);
  const info: TokenInfo = await client.token(token, signal);

  async function read(method: string, args: readonly unknown[], outer?: AbortSignal) {
    const data = abi.encodeFunctionData(method, args) as Hex;
    return abi.decodeFunctionResult(method, await rpc.contractCall({ to: escrow, data }, 'latest', outer))[0];
  }

  async function submit(key: string, call: Call, outer?: AbortSignal): Promise<string | undefined> {
    const submitted = await outbox.submit({ key, ...call }, outer);
    return submitted.outcome === 'refused' ? submitted.refusal.message : undefined;
  }

  return {
    address: outbox.address,
    token: { symbol: info.symbol, decimals: info.decimals },

    /** Seconds and number of the newest block, and the number of the newest that no reorganisation takes back. */
    async head(outer?: AbortSignal) {
      const [latest, safe] = await Promise.all([client.block('latest', outer), client.block('safe', outer)]);
      return { time: latest.timestamp, block: latest.number, safeBlock: safe.number };
    },

    /** Escrows that this account opened in these blocks, in our token; and up to where was looked, which may be less far. */
    async openedBy(consumer: Address, from: number, to: number, outer?: AbortSignal) {
      const found: Hex32[] = [];
      let next = from;
      for (let search = 0; search < mostSearches && next <= to; search++) {
        const last = Math.min(to, next + blocksPerSearch - 1);
        const filter = {
          address: escrow,
          topics: [opened, null, zeroPadValue(consumer, 32)],
          fromBlock: `0x${next.toString(16)}`,
          toBlock: `0x${last.toString(16)}`,
        };
        let logs: { topics: Hex32[]; data: Hex; address: string }[] | null;
        try {
          logs = await rpc.call('eth_getLogs', [filter], outer);
        } catch (error) {
          // A node that has forgotten, or will not search: those that are older are not sponsored.
          if (error instanceof RpcError) break;
          throw error;
        }
        for (const log of logs ?? []) {
          const { leaseId, token: paidIn } = abi.decodeEventLog('LeaseOpened', log.data, log.topics);
          if (String(paidIn).toLowerCase() === token.toLowerCase()) found.push(leaseId as Hex32);
        }
        next = last + 1;
      }
      return { leaseIds: found, scannedTo: next - 1 };
    },

    escrows: (leaseIds: readonly Hex32[], outer?: AbortSignal): Promise<readonly (Escrow | undefined)[]> =>
      client.leases(leaseIds, 'latest', outer),
    /** At the safe head: for what is written down for good. */
    settledEscrow: (leaseId: Hex32, outer?: AbortSignal) => client.lease(leaseId, 'safe', outer),

    /** What we put in. Those that were refunded count no more. */
    async pieces(leaseId: Hex32, outer?: AbortSignal): Promise<readonly Piece[]> {
      const count = Number(await read('sponsorships', [leaseId], outer));
      const own: Piece[] = [];
      for (let index = 0; index < Math.min(count, mostPieces); index++) {
        const { sponsor, amount, refundable } = await read('sponsorship', [leaseId, index], outer);
        if (String(sponsor).toLowerCase() === outbox.address.toLowerCase()) own.push({ index, amount, refundable });
      }
      return own;
    },

    /** Without a limit: nobody but us can use it, and only to top up. */
    async allow(amount: bigint, outer?: AbortSignal): Promise<string | undefined> {
      if ((await client.allowance(token, outbox.address, outer)) >= amount) return undefined;
      const key = intents.approve(client.chainId, token);
      if ((await outbox.state(key, outer))?.receipt?.safe) await outbox.forget(key, outer);
      return (await submit(key, client.calls.approve(token), outer)) ?? 'the allowance is under way';
    },
    topUp: (leaseId: Hex32, amount: bigint, total: bigint, outer?: AbortSignal) =>
      submit(intents.topUp(leaseId, total), client.calls.topUp(leaseId, amount), outer),
    refund: (leaseId: Hex32, index: number, outer?: AbortSignal) =>
      submit(`refund-sponsor:${leaseId}:${index}`, client.calls.refundSponsor(leaseId, index), outer),
    /** Takes what was credited to us, once it is safe. */
    async withdraw(outer?: AbortSignal): Promise<void> {
      if ((await client.credit(token, outbox.address, 'safe', outer)) === 0n) return;
      const entries = (await outbox.entries(outer)).filter((one) => one.key.startsWith('withdraw:'));
      if (entries.some((one) => one.state !== 'lost' && !one.receipt?.safe)) return;
      const { number } = await client.block('safe', outer);
      await submit(`withdraw:${number}`, client.calls.withdraw(token, outbox.address), outer);
    },
    tick: (outer?: AbortSignal) => outbox.tick(outer),
  };
}
