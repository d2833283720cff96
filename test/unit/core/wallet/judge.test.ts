import { describe, expect, test } from 'vitest';
import type { Quote } from '../../../../operator/api/messages.ts';
import { type Asked, type AskedOn, judge, type WalletRules } from '../../../../operator/core/wallet/judge.ts';
import { escrowAddress, leaseId, providerAddress, token, wallet } from '../../../support/builders.ts';

const chainId = 31337;
const other = `0x${'77'.repeat(20)}` as const;
const rules: WalletRules = { rails: [{ chainId, escrow: escrowAddress, token }] };
const quote = (change: Partial<Quote> = {}) =>
  ({ consumer: wallet, provider: providerAddress, token, ...change }) as Quote;
const open = (change: Partial<Quote> = {}, escrow = escrowAddress): Asked => ({
  call: 'open',
  escrow,
  quote: quote(change),
  deposit: 7n,
});
const target = { consumer: wallet, token, provider: providerAddress, closed: false };
const topUp: Asked = { call: 'topUp', escrow: escrowAddress, leaseId, amount: 3n };
const on = (more: Partial<AskedOn> = {}): AskedOn => ({ chainId, wallet, ...more });

describe('what the wallet signs', () => {
  const good: [string, Asked, Partial<AskedOn>, bigint | undefined][] = [
    ['an approval for a listed escrow', { call: 'approve', token, spender: escrowAddress }, {}, undefined],
    ['an opening with a quote that its provider signed', open(), { signedByProvider: true }, 7n],
    ['a top-up of an escrow of its own', topUp, { target }, 3n],
    ['a close', { call: 'closeWithRelease', escrow: escrowAddress }, {}, undefined],
    ['a request to close', { call: 'requestClose', escrow: escrowAddress }, {}, undefined],
    ['a withdrawal to itself', { call: 'withdraw', escrow: escrowAddress, token, to: wallet }, {}, undefined],
  ];
  test.each(good)('%s', (_, asked, more, amount) => {
    const verdict = judge(asked, on(more), rules);
    expect(verdict.sign).toBe(true);
    expect(verdict.sign && verdict.spends?.amount).toBe(amount);
  });
});

describe('what it does not sign', () => {
  const bad: [string, Asked, Partial<AskedOn>, WalletRules, RegExp][] = [
    ['an approval for somebody', { call: 'approve', token, spender: other }, {}, rules, /may not take/],
    ['an approval of another token', { call: 'approve', token: other, spender: escrowAddress }, {}, rules, /may not/],
    ['an opening of another contract', open({}, other), { signedByProvider: true }, rules, /not listed/],
    ['an opening in another token', open({ token: other }), { signedByProvider: true }, rules, /not listed/],
    ['an opening for another consumer', open({ consumer: other }), { signedByProvider: true }, rules, /not for this/],
    ['a quote that nobody signed', open(), { signedByProvider: false }, rules, /not signed by its provider/],
    ['a quote of which it is not known who signed it', open(), {}, rules, /not signed by its provider/],
    [
      'a quote of a provider that is not listed',
      open(),
      { signedByProvider: true },
      { ...rules, providers: [other] },
      /provider .* is not listed/,
    ],
    ['the same on another chain', open(), { signedByProvider: true, chainId: 1 }, rules, /not listed/],
    ['a top-up of what is not there', topUp, {}, rules, /there is no escrow/],
    ['a top-up for another consumer', topUp, { target: { ...target, consumer: other } }, rules, /not of this wallet/],
    ['a top-up of what is closed', topUp, { target: { ...target, closed: true } }, rules, /closed/],
    ['a top-up in another token', topUp, { target: { ...target, token: other } }, rules, /token .* is not listed/],
    [
      'a top-up for a provider that is not listed',
      topUp,
      { target },
      { ...rules, providers: [other] },
      /provider .* is not listed/,
    ],
    [
      'a withdrawal to somebody',
      { call: 'withdraw', escrow: escrowAddress, token, to: other },
      {},
      rules,
      /this wallet alone/,
    ],
    ['a close at another contract', { call: 'finalize', escrow: other }, {}, rules, /not listed/],
  ];
  test.each(bad)('%s', (_, asked, more, given, why) => {
    const verdict = judge(asked, on(more), given);
    expect(verdict.sign).toBe(false);
    expect(!verdict.sign && verdict.why).toMatch(why);
  });

  test.each(
    bad
      .filter(([, asked]) => asked.call === 'withdraw' || asked.call === 'topUp' || asked.call === 'open')
      .filter(([name]) => /consumer|signed|somebody|closed|not there/.test(name)),
  )('%s, also where no rails are listed', (_, asked, more, given, why) => {
    const verdict = judge(asked, on(more), { ...given, rails: undefined });
    expect(!verdict.sign && verdict.why).toMatch(why);
  });
});
