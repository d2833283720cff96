/**
 * Is what stands on a chain what this version would deploy, with the settings and the owner that the addresses file says?
 * Answers by the chain alone; nothing is sent, and no explorer is asked.
 */
import { ContractFactory, Interface } from 'ethers';
import type { Address, Hex } from '../../api/messages.ts';
import { gpuToken } from '../../contracts/generated/gpu-token.ts';
import { leaseEscrow } from '../../contracts/generated/lease-escrow.ts';
import { timelock } from '../../contracts/generated/timelock.ts';
import { sameAddress } from '../../core/money/escrow.ts';
import type { Deployment } from './deploy.ts';
import type { Rpc } from './rpc.ts';

export interface Verified {
  readonly what: string;
  readonly ok: boolean;
  /** What is there. */
  readonly found: string;
}

const escrowAbi = new Interface(leaseEscrow.abi);
const tokenAbi = new Interface(gpuToken.abi);
const timelockAbi = new Interface(timelock.abi);

export async function verifyDeployment(rpc: Rpc, deployment: Deployment, signal?: AbortSignal): Promise<Verified[]> {
  const { escrow, networkId, feeRecipient, claimWindowSeconds } = deployment;
  const results: Verified[] = [];
  const say = (what: string, ok: boolean, found: unknown) => results.push({ what, ok, found: String(found) });
  const read = async (abi: Interface, to: Address, method: string, args: readonly unknown[] = []) => {
    const data = abi.encodeFunctionData(method, args) as Hex;
    return abi.decodeFunctionResult(method, await rpc.contractCall({ to, data }, 'latest', signal))[0];
  };

  const code = await rpc.call<Hex>('eth_getCode', [escrow, 'latest'], signal);
  const same = await isMadeBy(rpc, code, leaseEscrow, [networkId, escrow, feeRecipient, claimWindowSeconds], signal);
  say('code of LeaseEscrow', same, same ? 'is that of this version' : `${code.length / 2 - 1} other bytes`);
  // Whatever else stands there need not answer.
  if (!same) return results;
  const owner = (await read(escrowAbi, escrow, 'owner')) as Address;
  say('owner', sameAddress(owner, deployment.owner), owner);
  const paused = await read(escrowAbi, escrow, 'opensPaused');
  say('new escrows', !paused, paused ? 'are paused' : 'are taken');

  for (const [name, { address, feeBps }] of Object.entries(deployment.tokens)) {
    const rule = (await read(escrowAbi, escrow, 'tokenRule', [address])) as { allowed: boolean; feeBps: bigint };
    const symbol = await read(tokenAbi, address, 'symbol');
    const found = `${symbol} ${rule.allowed ? 'allowed' : 'not allowed'}, fee ${rule.feeBps}`;
    say(`rule of ${name}`, rule.allowed && Number(rule.feeBps) === feeBps, found);
  }

  const lock = deployment.timelock;
  if (lock) {
    const lockCode = await rpc.call<Hex>('eth_getCode', [lock.address, 'latest'], signal);
    const known = await isMadeBy(rpc, lockCode, timelock, [0, [], [], escrow], signal);
    say('code of timelock', known, known ? "is OpenZeppelin's" : 'other bytes');
    const delay = Number(await read(timelockAbi, lock.address, 'getMinDelay'));
    say('delay of timelock', delay >= lock.delaySeconds, `${delay} seconds`);
    const role = await read(timelockAbi, lock.address, 'PROPOSER_ROLE');
    const governs = await read(timelockAbi, lock.address, 'hasRole', [role, lock.governor]);
    say('governor', governs, `${lock.governor} ${governs ? 'may' : 'may not'} propose`);
  }
  return results;
}

/**
 * Whether the code is what the constructor returns for these arguments. Some of its bytes name the contract's own address, and
 * no call can have that address; they are those that differ between made-up deployers, and are left out.
 */
async function isMadeBy(
  rpc: Rpc,
  code: Hex,
  contract: { readonly abi: readonly unknown[]; readonly bytecode: string },
  args: readonly unknown[],
  signal?: AbortSignal,
): Promise<boolean> {
  const abi = contract.abi as ConstructorParameters<typeof ContractFactory>[0];
  const { data } = await new ContractFactory(abi, contract.bytecode).getDeployTransaction(...args);
  const made: Buffer[] = [];
  for (const deployer of [1, 2, 3, 4, 5]) {
    const from = `0x${String(deployer).repeat(40)}`;
    made.push(bytesOf(await rpc.call<Hex>('eth_call', [{ from, data }, 'latest'], signal)));
  }
  const [first, ...others] = made;
  const there = bytesOf(code);
  if (there.length !== first!.length) return false;
  return first!.every((byte, at) => byte === there[at] || others.some((other) => other[at] !== byte));
}

const bytesOf = (hex: Hex): Buffer => Buffer.from(hex.slice(2), 'hex');
