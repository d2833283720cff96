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

  it('knows every close reason by the number that the contract gives it', () => {
    expect(closeReasons.indexOf('Open')).toBe(0);
    expect(closeReasons.filter((reason) => reason.startsWith('Provider'))).toEqual(closeReasons.slice(5));
  });
});
