/** What the wallet takes out of the bytes that it is asked to sign. */
import { describe, expect, test } from 'vitest';
import { encodeCalls } from '../../../../operator/adapters/chain/escrow-client.ts';
import { dayLimit, decodeCall, guardedOutbox } from '../../../../operator/adapters/chain/guarded-outbox.ts';
import { keyFromHex } from '../../../../operator/adapters/chain/key.ts';
import { signQuote } from '../../../../operator/adapters/chain/messages.ts';
import type { Intent, Outbox } from '../../../../operator/adapters/chain/outbox.ts';
import type { Rpc } from '../../../../operator/adapters/chain/rpc.ts';
import type { Address, Hex, Quote } from '../../../../operator/api/messages.ts';
import { transactions, withSpent } from '../../../../operator/core/wallet/spend.ts';
import {
  escrowAddress,
  leaseId,
  leaseRef,
  networkId,
  payee,
  sessionKey,
  token,
  wallet,
} from '../../../support/builders.ts';

const provider = keyFromHex('33'.repeat(32));
const chainId = 31337;
const domain = { chainId, escrow: escrowAddress };
const calls = encodeCalls(escrowAddress);
const quote: Quote = {
  networkId,
  provider: provider.address,
  payee,
  consumer: wallet,
  leaseRef,
  token,
  pricePerGpuHour: 360_000n,
  gpus: 1,
  minSeconds: 60,
  maxSeconds: 3600,
  startTimeoutSeconds: 600,
  graceSeconds: 60,
  capacityType: 0,
  specHash: leaseRef,
  saltCommit: leaseRef,
  referrer: '0x0000000000000000000000000000000000000000',
  referrerBps: 0,
  expiresAt: 1_800_000_000,
  nonce: 2n ** 255n,
};
const opening = async (change: Partial<Quote> = {}, by = provider) => {
  const signed = await signQuote(by, domain, { ...quote, ...change });
  return calls.open(signed, sessionKey, 5n);
};
const lower = (value: unknown) =>
  JSON.parse(JSON.stringify(value, (_, one) => (typeof one === 'bigint' ? `${one}n` : one)).toLowerCase());

describe('decodes', () => {
  test('an opening, with each field of its quote, by whatever way it is funded', async () => {
    const signed = await signQuote(provider, domain, quote);
    const permit = { value: 1n, deadline: 1, signature: signed.signature };
    const authorization = { validAfter: 0, validBefore: 1, signature: signed.signature };
    for (const call of [
      calls.open(signed, sessionKey, 5n),
      calls.openWithPermit(signed, sessionKey, 5n, permit),
      calls.openWithAuthorization(signed, sessionKey, 5n, authorization),
    ])
      expect(lower(decodeCall(call))).toEqual(lower({ call: 'open', escrow: escrowAddress, quote, deposit: 5n }));
  });

  test('the other calls', () => {
    expect(lower(decodeCall(calls.approve(token)))).toEqual({ call: 'approve', token, spender: escrowAddress });
    expect(lower(decodeCall(calls.topUp(leaseId, 3n)))).toEqual(
      lower({ call: 'topUp', escrow: escrowAddress, leaseId, amount: 3n }),
    );
    expect(lower(decodeCall(calls.withdraw(token, wallet)))).toEqual({
      call: 'withdraw',
      escrow: escrowAddress,
      token,
      to: wallet,
    });
    expect(decodeCall(calls.finalize(leaseId))?.call).toBe('finalize');
    expect(decodeCall(calls.requestClose(leaseId))?.call).toBe('requestClose');
  });

  const unknown: [string, { to: Address; data: Hex }][] = [
    ['a transfer of tokens', { to: token, data: `0xa9059cbb${'0'.repeat(128)}` }],
    ['a call of the owner', calls.setToken(token, true, 1)],
    ['a call of the provider', calls.cancelQuote(1n)],
    ['nothing', { to: token, data: '0x' }],
    ['a call with bytes behind it', { ...calls.topUp(leaseId, 3n), data: `${calls.topUp(leaseId, 3n).data}00` }],
    ['half a call', { to: escrowAddress, data: calls.topUp(leaseId, 3n).data.slice(0, 40) as Hex }],
  ];
  test.each(unknown)('not %s', (_, call) => {
    expect(decodeCall(call)).toBeUndefined();
  });
});

/** An outbox that only notes what reaches it. */
function behind() {
  const reached: Intent[] = [];
  const outbox = {
    address: wallet,
    async submit(intent: Intent) {
      reached.push(intent);
      return { outcome: 'accepted', entry: {} };
    },
  } as unknown as Outbox;
  const rpc = {
    chainId,
    contractCall: async () => '0x',
    codeOf: async () => '0x',
  } as unknown as Rpc;
  const info = { address: token, symbol: 'USDC', decimals: 6, feeBps: 0, allowed: true };
  const tokens = new Map([[token, info]]);
  const rules = { rails: [{ chainId, escrow: escrowAddress, token }] };
  return { reached, guarded: guardedOutbox({ rpc, outbox, rules, tokens }), tokens };
}

describe('passes on', () => {
  test('an opening that the provider signed, with what it spends', async () => {
    const { reached, guarded } = behind();
    const call = await opening();
    expect(await guarded.submit({ key: 'open:1', ...call })).toMatchObject({ outcome: 'accepted' });
    expect(reached).toEqual([{ key: 'open:1', ...call, spends: { what: token, amount: 5n } }]);
  });

  test('nothing whose quote another signed, or was changed after it was signed', async () => {
    const { reached, guarded } = behind();
    const stranger = keyFromHex('44'.repeat(32));
    const changed = calls.open(
      { message: { ...quote, pricePerGpuHour: 1n }, signature: (await signQuote(provider, domain, quote)).signature },
      sessionKey,
      5n,
    );
    for (const call of [await opening({}, stranger), changed])
      expect(await guarded.submit({ key: 'k', ...call })).toMatchObject({
        outcome: 'refused',
        refusal: {
          name: 'WalletRefused',
          terminal: true,
          message: expect.stringMatching(/not signed by its provider/),
        },
      });
    expect(reached).toEqual([]);
  });

  test('no gas limit of the caller, and nothing else that it adds', async () => {
    const { reached, guarded } = behind();
    await guarded.submit({
      key: 'k',
      ...calls.approve(token),
      gasLimit: 10n ** 9n,
      spends: { what: token, amount: -5n },
    });
    expect(Object.keys(reached[0]!)).toEqual(['key', 'to', 'data']);
  });
});

describe('within a day', () => {
  const { tokens } = behind();
  const limits = { amounts: new Map([['USDC', '10']]), transactions: 3 };
  const say = dayLimit(limits, tokens);
  const now = 1_000_000;
  const spends = (amount: bigint, what: string = token): Intent => ({
    key: 'k',
    to: escrowAddress,
    data: '0x',
    spends: { what, amount },
  });
  test.each([
    ['as much as the limit', 10_000_000n, undefined],
    ['more than the limit', 10_000_001n, /more than 10 USDC.*--daily-limit/],
  ])('%s', (_, amount, why) => {
    const said = say([], spends(amount), now)?.message;
    if (why) expect(said).toMatch(why);
    else expect(said).toBeUndefined();
  });
  test('what was spent before counts, and a token without a limit is not spent', () => {
    const spent = withSpent([], [{ what: token, amount: 6_000_000n }], now);
    expect(say(spent, spends(4_000_000n), now)).toBeUndefined();
    expect(say(spent, spends(4_000_001n), now)?.terminal).toBe(false);
    expect(say([], spends(1n, payee), now)?.message).toMatch(/--daily-limit/);
  });
  test('no more transactions than it was told', () => {
    const spent = withSpent([], [{ what: transactions, amount: 3n }], now);
    expect(say(spent, { key: 'k', to: escrowAddress, data: '0x' }, now)?.message).toMatch(/--daily-transactions/);
  });
});
