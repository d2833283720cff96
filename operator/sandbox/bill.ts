/** What the chain itself says a lease cost: from its logs and receipts, not from anybody's status. */
import { Interface } from 'ethers';
import type { Address, Hex32 } from '../api/messages.ts';
import { gpuToken } from '../contracts/generated/gpu-token.ts';
import { leaseEscrow } from '../contracts/generated/lease-escrow.ts';
import type { Anvil } from './chain/anvil.ts';

export interface Gas {
  readonly open: number;
  readonly close: number;
  readonly total: number;
}

interface ChainLog {
  readonly topics: string[];
  readonly data: string;
  readonly transactionHash: string;
  readonly address: string;
}

const escrowAbi = new Interface(leaseEscrow.abi);
const tokenAbi = new Interface(gpuToken.abi);

const logsOf = (chain: Anvil, address: string, topics: (string | null)[]) =>
  chain.rpc<ChainLog[]>('eth_getLogs', { address, topics, fromBlock: '0x0', toBlock: 'latest' });

async function gasOf(chain: Anvil, hash: string): Promise<number> {
  return Number((await chain.rpc<{ gasUsed: string }>('eth_getTransactionReceipt', hash)).gasUsed);
}

/** Gas of the transaction that opened the escrow, and of all later ones that touched it, top-ups apart. */
export async function gasOfLease(chain: Anvil, escrow: Address, leaseId: Hex32): Promise<Gas> {
  const logs = await logsOf(chain, escrow, [null, leaseId]);
  const opened = escrowAbi.getEvent('LeaseOpened')!.topicHash;
  const toppedUp = escrowAbi.getEvent('LeaseToppedUp')!.topicHash;
  const openTx = logs.find((l) => l.topics[0] === opened)?.transactionHash;
  const others = new Set(
    logs.filter((l) => l.topics[0] !== toppedUp && l.transactionHash !== openTx).map((l) => l.transactionHash),
  );
  const open = openTx ? await gasOf(chain, openTx) : 0;
  let close = 0;
  for (const hash of others) close += await gasOf(chain, hash);
  return { open, close, total: open + close };
}

/**
 * Gas of an account's approvals of a token for the escrow, and of its withdrawals: each once, first one first. A permit inside an
 * opening is no transaction of its own, and counts there.
 */
export async function gasOfAccount(
  chain: Anvil,
  escrow: Address,
  token: Address,
  account: Address,
): Promise<{ approve: number[]; withdraw: number[] }> {
  const topic = (address: string) => `0x${address.slice(2).toLowerCase().padStart(64, '0')}`;
  const approvals = await logsOf(chain, token, [
    tokenAbi.getEvent('Approval')!.topicHash,
    topic(account),
    topic(escrow),
  ]);
  const own: ChainLog[] = [];
  for (const log of approvals) {
    const { to } = await chain.rpc<{ to: string | null }>('eth_getTransactionByHash', log.transactionHash);
    if (to?.toLowerCase() === token.toLowerCase()) own.push(log);
  }
  const withdrawals = await logsOf(chain, escrow, [
    escrowAbi.getEvent('Withdrawn')!.topicHash,
    topic(token),
    topic(account),
  ]);
  const each = async (logs: ChainLog[]) => {
    const gas: number[] = [];
    for (const hash of new Set(logs.map((l) => l.transactionHash))) gas.push(await gasOf(chain, hash));
    return gas;
  };
  return { approve: await each(own), withdraw: await each(withdrawals) };
}
