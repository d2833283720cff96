/**
 * I14 on a real chain, through the adapters: model and contract agree on every random trace: which calls are refused and why,
 * every lease, credit and sum after each. `npm run test:contracts` plays thousands of the same traces inside of forge; here
 * are a few, over JSON-RPC. TRACE_SEED and TRACE_RUNS change what is tried.
 */

import { Interface, ZeroAddress } from 'ethers';
import { afterAll, beforeAll, expect, it } from 'vitest';
import type { Call } from '../../operator/adapters/chain/escrow-client.ts';
import type { ChainKey } from '../../operator/adapters/chain/key.ts';
import { hashQuote, leaseIdOf, signQuote, signRelease, signVoucher } from '../../operator/adapters/chain/messages.ts';
import type { Address, Hex, Hex32 } from '../../operator/api/messages.ts';
import { leaseEscrow } from '../../operator/contracts/generated/lease-escrow.ts';
import type { ProviderCloseReason } from '../../operator/core/money/escrow.ts';
import {
  creditOf,
  type EscrowCall,
  type EscrowModel,
  type Opening,
  refundableOf,
  totalsOf,
} from '../../operator/core/money/model.ts';
import { authorizedOpen } from '../support/authorization.ts';
import { type EscrowChain, type Role, startEscrowChain } from '../support/escrow-chain.ts';
import { type Actor, neverMet, type Stage, trace } from '../support/escrow-traces.ts';

const roleOf: Readonly<Record<Exclude<Actor, 'nobody'>, Role>> = {
  owner: 'deployer',
  consumer: 'consumer',
  provider: 'provider',
  session: 'session',
  referrer: 'referrer',
  feeRecipient: 'feeRecipient',
  stranger: 'stranger',
  payee: 'payee',
};
const payers = ['consumer', 'stranger', 'payee', 'provider'] as const satisfies readonly Role[];

let chain: EscrowChain;
let stage: Stage;
beforeAll(async () => {
  chain = await startEscrowChain({ claimWindowSeconds: 300 });
  const { keys, client, usdc, gpu } = chain;
  const accounts = Object.fromEntries([
    ['nobody', ZeroAddress],
    ...Object.entries(roleOf).map(([actor, role]) => [actor, keys[role].address]),
  ]) as Stage['accounts'];
  stage = {
    accounts,
    usdc,
    gpu,
    networkId: client.networkId,
    claimWindowSeconds: client.claimWindowSeconds,
    leaseIdOf,
    hashQuote: (quote) => hashQuote(client.domain, quote),
  };
  const tokens = new Interface(['function mint(address,uint256)', 'function transfer(address,uint256)']);
  for (const role of payers) {
    const mint = tokens.encodeFunctionData('mint', [keys[role].address, 10n ** 24n]) as Hex;
    await chain.send(keys.deployer, { to: usdc, data: mint });
    const give = tokens.encodeFunctionData('transfer', [keys[role].address, 10n ** 26n]) as Hex;
    await chain.send(keys.deployer, { to: gpu, data: give });
    for (const token of [usdc, gpu]) await chain.send(keys[role], client.calls.approve(token));
  }
}, 60_000);
afterAll(() => chain?.stop());

const keyOf = (address: Address): ChainKey => {
  const key = Object.values(chain.keys).find((one) => one.address === address);
  // Nobody signs: any key that is not the expected one will do.
  return key ?? chain.keys.stranger;
};

/** The model's call as a transaction. */
async function onChain(call: EscrowCall): Promise<Call> {
  const { calls, domain } = chain.client;
  switch (call.do) {
    case 'open':
      return calls.open(await signQuote(keyOf(call.signedBy), domain, call.quote), call.signer, call.deposit);
    case 'openWithAuthorization':
      return openWithAuthorization(call);
    case 'topUp':
      return calls.topUp(call.leaseId, call.amount);
    case 'settle':
      return calls.settle(await signVoucher(keyOf(call.signedBy), domain, call.voucher));
    case 'settleMany':
      return calls.settleMany(
        await Promise.all(call.items.map(({ voucher, signedBy }) => signVoucher(keyOf(signedBy), domain, voucher))),
      );
    case 'close':
      return calls.close(await signVoucher(keyOf(call.signedBy), domain, call.voucher));
    case 'closeWithRelease':
      return calls.closeWithRelease(await signRelease(keyOf(call.signedBy), domain, call.release));
    case 'requestClose':
      return calls.requestClose(call.leaseId);
    case 'providerClose':
      return calls.providerClose(call.leaseId, call.reason as ProviderCloseReason);
    case 'finalize':
      return calls.finalize(call.leaseId);
    case 'refundSponsor':
      return calls.refundSponsor(call.leaseId, call.index);
    case 'withdraw':
      return calls.withdraw(call.token, call.from);
    case 'cancelQuote':
      return calls.cancelQuote(call.nonce);
    case 'setToken':
      return calls.setToken(call.token, call.rule.allowed, call.rule.feeBps);
    case 'setOpensPaused':
      return calls.setOpensPaused(call.paused);
  }
}

async function openWithAuthorization({ quote, signedBy, signer, deposit }: Opening): Promise<Call> {
  const signed = await signQuote(keyOf(signedBy), chain.client.domain, quote);
  return authorizedOpen(chain, keyOf(quote.consumer), signed, signer, deposit);
}

async function play(seed: string, outcomes: Map<string, number>): Promise<number> {
  const { client, anvil } = chain;
  const leases = new Set<Hex32>();
  let calls = 0;
  for (const { call, now, refusal, state } of trace(stage, seed, await chain.now())) {
    calls += 1;
    if ('quote' in call) leases.add(call.leaseId);
    // First what the contract says in a block of that very time, then the transaction in one.
    await anvil.rpc('evm_setNextBlockTimestamp', now);
    await anvil.rpc('evm_mine');
    const transaction = await onChain(call);
    const answer = await client.simulate(call.from, transaction);
    // Ownership is OpenZeppelin's, with a name of its own.
    const name = answer?.name === 'OwnableUnauthorizedAccount' ? 'NotAuthorized' : answer?.name;
    const outcome = `${call.do} ${refusal ?? 'accepted'}`;
    outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
    expect(`${call.do} ${name ?? 'accepted'}`).toBe(outcome);
    if (refusal !== undefined) continue;
    await anvil.rpc('anvil_setBlockTimestampInterval', 0);
    const receipt = await chain.send(keyOf(call.from), transaction);
    await anvil.rpc('anvil_removeBlockTimestampInterval');
    expect(receipt.status).toBe(1);
    expect(await chain.now()).toBe(now);
    await compare(state, [...leases]);
  }
  return calls;
}

async function compare(state: EscrowModel, ids: readonly Hex32[]): Promise<void> {
  const { client, keys, usdc, gpu } = chain;
  expect(await client.leases(ids)).toEqual(ids.map((id) => state.leases.get(id)));
  for (const id of ids) expect(await sponsorshipsOf(id)).toEqual(modelledSponsorships(state, id));
  for (const token of [usdc, gpu]) {
    expect(await client.totals(token)).toEqual(totalsOf(state, token));
    const roles = Object.values(roleOf);
    const credits = await Promise.all(roles.map((role) => client.credit(token, keys[role].address)));
    expect(credits).toEqual(roles.map((role) => creditOf(state, token, keys[role].address)));
    const { deposited, paid, fee, refunded, held, withdrawn } = totalsOf(state, token);
    expect(deposited).toBe(paid + fee + refunded + held);
    expect(await client.balance(token, client.address)).toBe(deposited - withdrawn);
  }
}

interface Sponsored {
  readonly sponsor: Address;
  readonly amount: bigint;
  readonly refundable: bigint;
}

function modelledSponsorships(state: EscrowModel, leaseId: Hex32): readonly Sponsored[] {
  const refundable = refundableOf(state, leaseId);
  return (state.sponsorships.get(leaseId) ?? []).map((piece, index) => ({ ...piece, refundable: refundable[index]! }));
}

async function sponsorshipsOf(leaseId: Hex32): Promise<readonly Sponsored[]> {
  const { client, rpc } = chain;
  const abi = new Interface(leaseEscrow.abi);
  const ask = async (method: string, args: readonly unknown[]) => {
    const data = abi.encodeFunctionData(method, args) as Hex;
    return abi.decodeFunctionResult(method, await rpc.contractCall({ to: client.address, data }))[0];
  };
  const count = Number(await ask('sponsorships', [leaseId]));
  return Promise.all(
    Array.from({ length: count }, async (_, index) => {
      const { sponsor, amount, refundable } = await ask('sponsorship', [leaseId, index]);
      return { sponsor, amount, refundable };
    }),
  );
}

it('model and contract agree on every random trace', async () => {
  const runs = Number(process.env.TRACE_RUNS ?? 15);
  const seed = process.env.TRACE_SEED ?? 'chain';
  const outcomes = new Map<string, number>();
  let calls = 0;
  for (let run = 0; run < runs; run++) {
    const snapshot = await chain.anvil.rpc('evm_snapshot');
    try {
      calls += await play(`${seed}/${run}`, outcomes);
    } catch (error) {
      throw new Error(`trace ${seed}/${run}: ${(error as Error).message}`, { cause: error });
    } finally {
      await chain.anvil.rpc('evm_revert', snapshot);
    }
  }
  // A trace that meets only refusals, or never one, would agree on nothing.
  const accepted = [...outcomes].reduce((sum, [outcome, count]) => sum + (outcome.endsWith('accepted') ? count : 0), 0);
  expect(neverMet({ traces: runs, calls, accepted, outcomes }).length).toBeLessThan(8);
}, 300_000);
