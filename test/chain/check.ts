/**
 * What must hold after every scenario, whatever was broken in it:
 *
 *   nothing left    no transaction waits in the pool, and no account has a hole among its nonces
 *   conservation    per token: deposits = paid + fee + refunded + held; the contract has what it did not pay out
 *   fair bills      every closed escrow paid exactly what its seconds cost, and gave the rest back
 */
import { Interface } from 'ethers';
import type { Hex32 } from '../../operator/api/messages.ts';
import { leaseEscrow } from '../../operator/contracts/generated/lease-escrow.ts';
import { type Escrow, heldIn } from '../../operator/core/money/escrow.ts';
import { wrongBill } from '../faults/check.ts';
import type { ChainLab } from './lab.ts';
import { Wrong } from './scenario.ts';

const opened = new Interface(leaseEscrow.abi).getEvent('LeaseOpened')!.topicHash;

/** Gives how many escrows there are. */
export async function checkChain({ chain, anvil, until }: ChainLab): Promise<number> {
  const { client } = chain;
  await until(
    'empty pool',
    async () => {
      const { pending, queued } = await anvil.rpc<{ pending: string; queued: string }>('txpool_status');
      return Number(pending) + Number(queued) === 0 ? true : undefined;
    },
    10,
  );
  const logs = await anvil.rpc<{ topics: string[] }[]>('eth_getLogs', {
    address: client.address,
    topics: [opened],
    fromBlock: '0x0',
    toBlock: 'latest',
  });
  const ids = logs.map((log) => log.topics[1] as Hex32);
  const escrows = (await client.leases(ids)) as Escrow[];
  const wrong: string[] = [];
  if (new Set(ids).size !== ids.length) wrong.push('an escrow was opened twice');
  for (const escrow of escrows) if (escrow.closed) wrong.push(...wrongBill(escrow));
  for (const token of [chain.usdc, chain.gpu]) {
    const totals = await client.totals(token);
    const { deposited, paid, fee, refunded, held, withdrawn } = totals;
    if (deposited !== paid + fee + refunded + held) wrong.push(`deposits of ${token} are not conserved`);
    const balance = await client.balance(token, client.address);
    if (balance !== deposited - withdrawn)
      wrong.push(`the contract has ${balance} of ${token}, not ${deposited - withdrawn}`);
    const locked = escrows.filter((one) => one.token === token).reduce((sum, one) => sum + heldIn(one), 0n);
    // What sponsors put in stays held after the close, until it is credited to them.
    if (held < locked) wrong.push(`${held} of ${token} is held, the open escrows need ${locked}`);
  }
  if (wrong.length > 0) throw new Wrong(wrong.slice(0, 4).join('; '));
  return ids.length;
}
