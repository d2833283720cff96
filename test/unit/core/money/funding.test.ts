/** Which way a deposit goes. The figures are the contract's own, as measured by its gas test. */
import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type AllowancePolicy,
  allowancePolicies,
  type FundingWay,
  gasOfWay,
  type TokenSignatures,
  waysToFund,
} from '../../../../operator/core/money/funding.ts';

const gas = JSON.parse(
  readFileSync(new URL('../../../../operator/contracts/gas.json', import.meta.url), 'utf8'),
) as Record<string, number>;

const none: TokenSignatures = { permit: false, authorization: false };
const both: TokenSignatures = { permit: true, authorization: true };

describe('the way of a deposit', () => {
  it.each<[string, AllowancePolicy, bigint, TokenSignatures | undefined, readonly FundingWay[]]>([
    ['is the allowance that stands', 'Standing', 100n, both, ['Allowance']],
    ['is the allowance that stands, also where none should', 'PerDeposit', 100n, both, ['Allowance']],
    ['is a permit first, which lasts', 'Standing', 99n, both, ['Permit', 'Approve', 'Authorization']],
    ['is an approval where nothing can be signed', 'Standing', 0n, none, ['Approve']],
    ['is an approval while nobody knows what can be signed', 'PerDeposit', 0n, undefined, ['Approve']],
    [
      'is an approval, which lasts, before an authorization, which does not',
      'Standing',
      0n,
      { permit: false, authorization: true },
      ['Approve', 'Authorization'],
    ],
    ['is an authorization where nothing may stand', 'PerDeposit', 0n, both, ['Authorization', 'Approve']],
    // A permit's nonce is used by the one that is mined first: two for one deposit each could not be under way together.
    [
      'is never a permit where nothing may stand',
      'PerDeposit',
      0n,
      { permit: true, authorization: false },
      ['Approve'],
    ],
  ])('%s', (_, policy, allowance, signatures, ways) => {
    expect(waysToFund({ amount: 100n, allowance, signatures, policy })).toEqual(ways);
  });

  it('has, if nothing stands, what works with every token, and no way that the token lacks', () => {
    fc.assert(
      fc.property(
        fc.bigInt({ min: 1n, max: 1000n }),
        fc.bigInt({ min: 0n, max: 1000n }),
        fc.option(fc.record({ permit: fc.boolean(), authorization: fc.boolean() }), { nil: undefined }),
        fc.constantFrom(...allowancePolicies),
        (amount, allowance, signatures, policy) => {
          const ways = waysToFund({ amount, allowance, signatures, policy });
          if (allowance >= amount) {
            expect(ways).toEqual(['Allowance']);
            return;
          }
          expect(ways).toContain('Approve');
          expect(ways).not.toContain('Allowance');
          expect(ways.includes('Permit')).toBe(policy === 'Standing' && signatures?.permit === true);
          expect(ways.includes('Authorization')).toBe(signatures?.authorization === true);
        },
      ),
    );
  });

  it.each<[FundingWay, number]>([
    ['Permit', gas['openWithPermit, first permit']! - gas['open, second lease']!],
    ['Authorization', gas.openWithAuthorization! - gas['open, second lease']!],
    ['Approve', gas.approve!],
  ])('is told apart by what %s costs the contract, to 2 %%', (way, measured) => {
    expect(Math.abs(gasOfWay[way] - measured) / measured).toBeLessThan(0.02);
  });
});
