/** The model alone, where a chain would be too slow or too strict; that it is the contract's is tested on a chain. */
import { describe, expect, it } from 'vitest';
import type { Address, Hex32, Quote } from '../../../../operator/api/messages.ts';
import { closeReasons } from '../../../../operator/core/money/escrow.ts';
import {
  callEscrow,
  creditOf,
  type EscrowCall,
  type EscrowModel,
  newEscrowModel,
  type Opening,
  refundableOf,
  totalsOf,
} from '../../../../operator/core/money/model.ts';

const at = (digit: string) => `0x${digit.repeat(40)}` as Address;
const [owner, treasury, consumer, provider, session, token, nobody] = ['1', '2', '3', '4', '5', '6', '0'].map(
  at,
) as Address[];
const network = `0x${'ab'.repeat(32)}` as Hex32;
const leaseId = `0x${'cd'.repeat(32)}` as Hex32;

const quote: Quote = {
  networkId: network,
  provider: provider!,
  payee: provider!,
  consumer: consumer!,
  leaseRef: leaseId,
  token: token!,
  pricePerGpuHour: 360_000n,
  gpus: 1,
  minSeconds: 10,
  maxSeconds: 3600,
  startTimeoutSeconds: 60,
  graceSeconds: 60,
  capacityType: 0,
  specHash: leaseId,
  saltCommit: leaseId,
  referrer: nobody!,
  referrerBps: 0,
  expiresAt: 2000,
  nonce: 1n,
};

const opening = (changes: Partial<Extract<EscrowCall, { do: 'open' }>> = {}): EscrowCall => ({
  do: 'open',
  from: consumer!,
  quote,
  leaseId,
  quoteHash: leaseId,
  signedBy: provider!,
  signer: session!,
  deposit: 360_000n,
  ...changes,
});

function deployed(): EscrowModel {
  const fresh = newEscrowModel({ networkId: network, owner: owner!, feeRecipient: treasury!, claimWindowSeconds: 100 });
  return run(fresh, { do: 'setToken', from: owner!, token: token!, rule: { allowed: true, feeBps: 200 } }, 1);
}

function run(state: EscrowModel, call: EscrowCall, now: number): EscrowModel {
  const result = callEscrow(state, call, now);
  if (!result.ok) throw new Error(result.refusal);
  return result.state;
}

describe('the model of the escrow', () => {
  it('opens, settles, closes, pays out; the books close', () => {
    let state = run(deployed(), opening(), 1000);
    state = run(
      state,
      { do: 'settle', from: nobody!, voucher: { leaseId, servedSeconds: 30, last: false }, signedBy: session! },
      1030,
    );
    state = run(
      state,
      { do: 'close', from: provider!, voucher: { leaseId, servedSeconds: 61, last: true }, signedBy: session! },
      1100,
    );
    expect(state.leases.get(leaseId)).toMatchObject({
      claimed: 6100n,
      feeTaken: 122n,
      refunded: 353_900n,
      closingAt: 1100,
    });
    expect(creditOf(state, token!, provider!)).toBe(5978n);
    expect(creditOf(state, token!, treasury!)).toBe(122n);
    state = run(state, { do: 'withdraw', from: consumer!, token: token! }, 1200);
    expect(totalsOf(state, token!)).toEqual({
      deposited: 360_000n,
      paid: 5978n,
      fee: 122n,
      refunded: 353_900n,
      held: 0n,
      withdrawn: 353_900n,
    });
  });

  it('refuses as the contract does, and a refusal changes nothing', () => {
    const state = run(deployed(), opening(), 1000);
    const before = structuredClone({ ...state });
    const voucher = { leaseId, servedSeconds: 30, last: true };
    const refusals: readonly [EscrowCall, number, string][] = [
      [opening(), 1001, 'LeaseExists'],
      [opening({ leaseId: network, from: provider! }), 1001, 'NotAuthorized'],
      [opening({ leaseId: network }), 2000, 'QuoteExpired'],
      [opening({ leaseId: network, signer: nobody! }), 1001, 'InvalidTerms'],
      [opening({ leaseId: network, signedBy: session! }), 1001, 'BadSignature'],
      [opening({ leaseId: network, deposit: 999n }), 1001, 'DepositOutOfRange'],
      [{ do: 'settle', from: nobody!, voucher, signedBy: provider! }, 1001, 'BadSignature'],
      [{ do: 'close', from: consumer!, voucher, signedBy: session! }, 1001, 'NotAuthorized'],
      [
        { do: 'close', from: provider!, voucher: { ...voucher, last: false }, signedBy: session! },
        1001,
        'NotLastVoucher',
      ],
      [{ do: 'providerClose', from: provider!, leaseId, reason: 'Expired' }, 1001, 'NotProviderReason'],
      [{ do: 'finalize', from: nobody!, leaseId }, 4759, 'NotFinalizableBefore'],
      [{ do: 'requestClose', from: consumer!, leaseId: network }, 1001, 'LeaseNotFound'],
      [{ do: 'withdraw', from: consumer!, token: token! }, 1001, 'NothingToWithdraw'],
      [{ do: 'setToken', from: owner!, token: token!, rule: { allowed: true, feeBps: 501 } }, 1001, 'FeeTooHigh'],
    ];
    for (const [call, now, refusal] of refusals) expect(callEscrow(state, call, now)).toEqual({ ok: false, refusal });
    expect(structuredClone({ ...state })).toEqual(before);
    expect(callEscrow(state, { do: 'finalize', from: nobody!, leaseId }, 4760).ok).toBe(true);
  });

  it('spends sponsors last, first come first spent, and refunds each what is left of its own', () => {
    const [first, second] = [at('7'), at('8')];
    let state = run(deployed(), opening({ deposit: 10_000n }), 1000);
    const topUp = (from: Address, amount: bigint) => {
      state = run(state, { do: 'topUp', from, leaseId, amount }, 1001);
    };
    topUp(first, 5000n);
    topUp(first, 1000n);
    topUp(second, 4000n);
    topUp(consumer!, 2000n);
    expect(state.sponsorships.get(leaseId)).toEqual([
      { sponsor: first, amount: 6000n },
      { sponsor: second, amount: 4000n },
    ]);
    expect(refundableOf(state, leaseId)).toEqual([0n, 0n]);
    expect(callEscrow(state, { do: 'refundSponsor', from: nobody!, leaseId, index: 0 }, 1002)).toEqual({
      ok: false,
      refusal: 'LeaseIsOpen',
    });

    // 190 seconds cost 19,000: the consumer's 12,000, all 6000 of the first, 1000 of the second.
    const voucher = { leaseId, servedSeconds: 190, last: true };
    state = run(state, { do: 'close', from: provider!, voucher, signedBy: session! }, 1300);
    expect(creditOf(state, token!, consumer!)).toBe(0n);
    expect(totalsOf(state, token!)).toMatchObject({ refunded: 0n, held: 3000n });
    expect(refundableOf(state, leaseId)).toEqual([0n, 3000n]);
    const refund = (index: number): EscrowCall => ({ do: 'refundSponsor', from: nobody!, leaseId, index });
    state = run(state, refund(1), 1301);
    expect(creditOf(state, token!, second)).toBe(3000n);
    expect(totalsOf(state, token!)).toMatchObject({ refunded: 3000n, held: 0n });
    for (const index of [0, 1, 2]) {
      expect(callEscrow(state, refund(index), 1302)).toEqual({ ok: false, refusal: 'NothingToRefund' });
    }
  });

  it('opens for anyone what the consumer authorized, and for nothing at all', () => {
    const by = (changes: Partial<Opening>): EscrowCall => ({
      ...(opening(changes) as Opening),
      do: 'openWithAuthorization',
    });
    const state = run(deployed(), by({ from: nobody! }), 1000);
    expect(state.leases.get(leaseId)).toMatchObject({ consumer, deposit: 360_000n });
    expect(callEscrow(deployed(), by({ deposit: 0n }), 1000)).toEqual({ ok: false, refusal: 'DepositOutOfRange' });
  });

  it('stops billing at the end, whenever the close is asked for', () => {
    let state = run(deployed(), opening(), 1000);
    const { endsAt } = state.leases.get(leaseId)!;
    state = run(state, { do: 'requestClose', from: consumer!, leaseId }, endsAt + 50);
    expect(state.leases.get(leaseId)).toMatchObject({ closingAt: endsAt });
  });

  it('refuses a referrer who would get more than half of the fee', () => {
    const greedy = { ...quote, referrer: at('7'), referrerBps: 5001 };
    expect(callEscrow(deployed(), opening({ quote: greedy }), 1000)).toEqual({ ok: false, refusal: 'InvalidTerms' });
    const fair = { ...quote, referrer: at('7'), referrerBps: 5000 };
    expect(callEscrow(deployed(), opening({ quote: fair }), 1000).ok).toBe(true);
  });

  it('knows every close reason by the number that the contract gives it', () => {
    expect(closeReasons.indexOf('Open')).toBe(0);
    expect(closeReasons.filter((reason) => reason.startsWith('Provider'))).toEqual(closeReasons.slice(5));
  });
});
