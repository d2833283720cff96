/**
 * I14: the bigint model and the contract agree on every random trace: which calls are refused and why, every lease, credit
 * and sum after each. Seeded; FC_SEED and FC_RUNS change what is tried.
 */

import { ZeroAddress } from 'ethers';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, it } from 'vitest';
import type { Call } from '../../operator/adapters/chain/escrow-client.ts';
import type { ChainKey } from '../../operator/adapters/chain/key.ts';
import { hashQuote, leaseIdOf, signQuote, signRelease, signVoucher } from '../../operator/adapters/chain/messages.ts';
import type { Address, Hex32, Quote } from '../../operator/api/messages.ts';
import { type CloseReason, closeReasons } from '../../operator/core/money/escrow.ts';
import {
  callEscrow,
  creditOf,
  type EscrowCall,
  type EscrowModel,
  newEscrowModel,
  totalsOf,
} from '../../operator/core/money/model.ts';
import { priceOf } from '../../operator/core/money/price.ts';
import { type EscrowChain, type Role, startEscrowChain } from '../support/escrow-chain.ts';

let chain: EscrowChain;
beforeAll(async () => {
  chain = await startEscrowChain({ claimWindowSeconds: 300 });
  for (const token of [chain.usdc, chain.gpu]) await chain.send(chain.keys.consumer, chain.client.calls.approve(token));
}, 60_000);
afterAll(() => chain?.stop());

/** A move, as numbers: what they mean depends on the leases there are when it comes. */
const move = fc.record({
  kind: fc.constantFrom(
    ...(['open', 'open', 'open', 'topUp', 'settle', 'settle', 'settleMany', 'close', 'closeWithRelease'] as const),
    ...(['requestClose', 'providerClose', 'finalize', 'finalize', 'withdraw', 'cancelQuote', 'govern'] as const),
  ),
  wait: fc.oneof(fc.nat(5), fc.nat(200), fc.nat(1000)),
  which: fc.nat(7),
  seconds: fc.oneof(fc.nat(50), fc.nat(900)),
  amount: fc.nat(1000),
  price: fc.oneof(fc.nat(10), fc.nat(2_000_000)),
  who: fc.nat(9),
  odd: fc.nat(19),
});
type Move = typeof move extends fc.Arbitrary<infer T> ? T : never;

const settled = ['consumer', 'provider', 'payee', 'referrer', 'feeRecipient'] as const satisfies readonly Role[];

/** The model's call and the chain's: the same wish, twice. */
interface Both {
  readonly call: EscrowCall;
  readonly key: ChainKey;
  readonly onChain: Call;
}

async function bothOf(turn: Move, quotes: Quote[], state: EscrowModel, now: number): Promise<Both | undefined> {
  const { keys, client, usdc, gpu } = chain;
  const { calls, domain } = client;
  const address = (role: Role) => keys[role].address;
  const quote = quotes[turn.which % Math.max(1, quotes.length)];
  const leaseId = quote ? leaseIdOf(quote.consumer, quote.leaseRef) : (`0x${'55'.repeat(32)}` as Hex32);
  const odd = turn.odd === 0;
  const token = turn.who % 2 === 0 ? usdc : gpu;

  switch (turn.kind) {
    case 'open': {
      const fresh = await chain.quote({
        token: turn.odd === 1 ? address('stranger') : token,
        pricePerGpuHour: turn.odd === 2 ? 2n ** 96n : BigInt(turn.price) * (token === gpu ? 10n ** 12n : 1n),
        gpus: turn.which % 4 === 3 && turn.odd === 3 ? 0 : (turn.which % 4) + 1,
        minSeconds: turn.odd === 4 ? 10_000 : 10,
        maxSeconds: turn.seconds + 10,
        startTimeoutSeconds: turn.amount % 60,
        payee: address(turn.who % 3 === 0 ? 'payee' : 'provider'),
        referrer: turn.who % 3 === 1 ? address('referrer') : (ZeroAddress as Address),
        referrerBps: turn.odd === 5 ? 10_001 : (turn.amount * 10) % 10_001,
        expiresAt: turn.odd === 6 ? now : now + 100_000,
        networkId: turn.odd === 7 ? (`0x${'99'.repeat(32)}` as Hex32) : client.networkId,
        nonce: BigInt(turn.which),
        ...(turn.odd === 8 && quote ? { leaseRef: quote.leaseRef } : {}),
      });
      const max = priceOf(fresh.maxSeconds, fresh.gpus, fresh.pricePerGpuHour);
      const min = priceOf(fresh.minSeconds, fresh.gpus, fresh.pricePerGpuHour);
      const deposit = turn.odd === 9 ? max + 1n : min > max ? max : min + ((max - min) * BigInt(turn.amount)) / 1000n;
      const by: Role = turn.odd === 10 ? 'stranger' : 'provider';
      const key = turn.odd === 11 ? keys.stranger : keys.consumer;
      const signer = turn.odd === 12 ? (ZeroAddress as Address) : address('session');
      quotes.push(fresh);
      return {
        call: {
          do: 'open',
          from: key.address,
          quote: fresh,
          leaseId: leaseIdOf(fresh.consumer, fresh.leaseRef),
          quoteHash: hashQuote(domain, fresh),
          signedBy: address(by),
          signer,
          deposit,
        },
        key,
        onChain: calls.open(await signQuote(keys[by], domain, fresh), signer, deposit),
      };
    }
    case 'topUp': {
      const lease = state.leases.get(leaseId);
      const room = lease ? priceOf(lease.maxSeconds, lease.gpus, lease.pricePerGpuHour) - lease.deposit : 5n;
      const amount = odd ? room + 1n : (room * BigInt(turn.amount)) / 1000n;
      return {
        call: { do: 'topUp', from: address('consumer'), leaseId, amount },
        key: keys.consumer,
        onChain: calls.topUp(leaseId, amount),
      };
    }
    case 'settle': {
      const by: Role = odd ? 'consumer' : 'session';
      const voucher = { leaseId, servedSeconds: turn.seconds, last: turn.who === 0 };
      return {
        call: { do: 'settle', from: address('stranger'), voucher, signedBy: address(by) },
        key: keys.stranger,
        onChain: calls.settle(await signVoucher(keys[by], domain, voucher)),
      };
    }
    case 'settleMany': {
      const items = await Promise.all(
        [0, 1, 2, 3].map(async (step) => {
          const one = quotes[(turn.which + step) % Math.max(1, quotes.length)];
          const id = one ? leaseIdOf(one.consumer, one.leaseRef) : leaseId;
          const by: Role = (turn.odd + step) % 7 === 0 ? 'stranger' : 'session';
          const voucher = { leaseId: id, servedSeconds: (turn.seconds * (step + 1)) % 900, last: step === 1 };
          return { voucher, signedBy: address(by), signed: await signVoucher(keys[by], domain, voucher) };
        }),
      );
      return {
        call: {
          do: 'settleMany',
          from: address('stranger'),
          items: items.map(({ voucher, signedBy }) => ({ voucher, signedBy })),
        },
        key: keys.stranger,
        onChain: calls.settleMany(items.map(({ signed }) => signed)),
      };
    }
    case 'close': {
      const by: Role = odd ? 'stranger' : 'session';
      const key = turn.odd === 1 ? keys.consumer : turn.odd === 2 ? keys.payee : keys.provider;
      const voucher = { leaseId, servedSeconds: turn.seconds, last: turn.odd !== 3 };
      return {
        call: { do: 'close', from: key.address, voucher, signedBy: address(by) },
        key,
        onChain: calls.close(await signVoucher(keys[by], domain, voucher)),
      };
    }
    case 'closeWithRelease': {
      const by: Role = odd ? 'session' : 'provider';
      const key = turn.odd === 1 ? keys.provider : keys.consumer;
      const release = { leaseId, servedSeconds: turn.seconds };
      return {
        call: { do: 'closeWithRelease', from: key.address, release, signedBy: address(by) },
        key,
        onChain: calls.closeWithRelease(await signRelease(keys[by], domain, release)),
      };
    }
    case 'requestClose': {
      const key = odd ? keys.provider : keys.consumer;
      return { call: { do: 'requestClose', from: key.address, leaseId }, key, onChain: calls.requestClose(leaseId) };
    }
    case 'providerClose': {
      // Rarer than the rest: it ends a lease for no reason.
      if (turn.odd > 6) return undefined;
      const key = odd ? keys.payee : keys.provider;
      const reason = closeReasons[turn.who]! as CloseReason;
      return {
        call: { do: 'providerClose', from: key.address, leaseId, reason },
        key,
        onChain: calls.providerClose(leaseId, reason as Parameters<typeof calls.providerClose>[1]),
      };
    }
    case 'finalize':
      return {
        call: { do: 'finalize', from: address('stranger'), leaseId },
        key: keys.stranger,
        onChain: calls.finalize(leaseId),
      };
    case 'withdraw': {
      const key = keys[settled[turn.which % settled.length]!];
      return { call: { do: 'withdraw', from: key.address, token }, key, onChain: calls.withdraw(token, key.address) };
    }
    case 'cancelQuote': {
      const nonce = BigInt(turn.which);
      if (turn.odd > 2) return undefined;
      return {
        call: { do: 'cancelQuote', from: address('provider'), nonce },
        key: keys.provider,
        onChain: calls.cancelQuote(nonce),
      };
    }
    case 'govern': {
      const key = odd ? keys.stranger : keys.deployer;
      if (turn.who < 5) {
        const paused = turn.who === 0;
        return {
          call: { do: 'setOpensPaused', from: key.address, paused },
          key,
          onChain: calls.setOpensPaused(paused),
        };
      }
      const rule = { allowed: turn.odd > 3, feeBps: turn.amount % 520 };
      return {
        call: { do: 'setToken', from: key.address, token: usdc, rule },
        key,
        onChain: calls.setToken(usdc, rule.allowed, rule.feeBps),
      };
    }
  }
}

async function play(moves: readonly Move[], seen: Map<string, number>): Promise<void> {
  const { client, keys, usdc, gpu, anvil } = chain;
  const fee = (feeBps: number) => ({ allowed: true, feeBps });
  let state: EscrowModel = {
    ...newEscrowModel({
      networkId: client.networkId,
      owner: keys.deployer.address,
      feeRecipient: keys.feeRecipient.address,
      claimWindowSeconds: client.claimWindowSeconds,
    }),
    tokenRules: new Map([
      [usdc, fee(200)],
      [gpu, fee(0)],
    ]),
  };
  const quotes: Quote[] = [];
  let now = await chain.now();
  // Signatures of quotes read the clock of the chain; a trace starts when it does.
  for (const turn of moves) {
    const both = await bothOf(turn, quotes, state, now);
    if (!both) continue;
    now += turn.wait + 1;
    const result = callEscrow(state, both.call, now);

    // First what the contract says in a block of that very time, then the transaction in one.
    await anvil.rpc('evm_setNextBlockTimestamp', now);
    await anvil.rpc('evm_mine');
    const refusal = await client.simulate(both.key.address, both.onChain);
    // Ownership is OpenZeppelin's, with a name of its own.
    const name = refusal?.name === 'OwnableUnauthorizedAccount' ? 'NotAuthorized' : refusal?.name;
    const outcome = `${both.call.do} ${result.ok ? 'accepted' : result.refusal}`;
    seen.set(outcome, (seen.get(outcome) ?? 0) + 1);
    expect(`${both.call.do} ${name ?? 'accepted'}`).toBe(outcome);
    if (!result.ok) continue;
    await anvil.rpc('anvil_setBlockTimestampInterval', 0);
    const receipt = await chain.send(both.key, both.onChain);
    await anvil.rpc('anvil_removeBlockTimestampInterval');
    expect(receipt.status).toBe(1);
    expect(await chain.now()).toBe(now);
    state = result.state;
    await compare(state, quotes);
  }
}

async function compare(state: EscrowModel, quotes: readonly Quote[]): Promise<void> {
  const { client, keys, usdc, gpu } = chain;
  const ids = [...new Set(quotes.map((quote) => leaseIdOf(quote.consumer, quote.leaseRef)))];
  expect(await client.leases(ids)).toEqual(ids.map((id) => state.leases.get(id)));
  for (const token of [usdc, gpu]) {
    expect(await client.totals(token)).toEqual(totalsOf(state, token));
    const credits = await Promise.all(settled.map((role) => client.credit(token, keys[role].address)));
    expect(credits).toEqual(settled.map((role) => creditOf(state, token, keys[role].address)));
    const { deposited, paid, fee, refunded, held, withdrawn } = totalsOf(state, token);
    expect(deposited).toBe(paid + fee + refunded + held);
    expect(await client.balance(token, client.address)).toBe(deposited - withdrawn);
  }
}

it('model and contract agree on every random trace', async () => {
  const numRuns = Number(process.env.FC_RUNS ?? 15);
  const seed = Number(process.env.FC_SEED ?? 20_260_301);
  const seen = new Map<string, number>();
  await fc.assert(
    fc.asyncProperty(fc.array(move, { minLength: 20, maxLength: 60, size: 'max' }), async (moves) => {
      const snapshot = await chain.anvil.rpc('evm_snapshot');
      try {
        await play(moves, seen);
      } finally {
        await chain.anvil.rpc('evm_revert', snapshot);
      }
    }),
    { numRuns, seed, endOnFailure: false },
  );
  // A trace that meets only refusals, or never one, would agree on nothing.
  const outcomes = [...seen.keys()];
  for (const call of [
    'open',
    'topUp',
    'settle',
    'settleMany',
    'close',
    'closeWithRelease',
    'requestClose',
    'finalize',
    'withdraw',
  ]) {
    expect(outcomes).toContain(`${call} accepted`);
  }
  expect(outcomes.filter((outcome) => !outcome.endsWith('accepted')).length).toBeGreaterThanOrEqual(15);
}, 300_000);
