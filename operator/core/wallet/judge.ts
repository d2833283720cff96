/**
 * What the wallet signs. It believes no caller: whoever has the operator's account may ask for anything, so each call is
 * decoded, and only these are signed:
 *
 *   approve           a listed escrow may take a listed token: it takes no more than an `open` or `topUp` of ours says
 *   open              a quote for this wallet that its provider signed, in a listed token
 *   topUp             of an open escrow of this wallet
 *   closeWithRelease, requestClose, finalize      they pay what was signed for, and refund the rest
 *   withdraw          to this wallet
 */
import type { Address, Hex32, Quote } from '../../api/messages.ts';
import type { Escrow } from '../money/escrow.ts';

export type Asked =
  | { readonly call: 'approve'; readonly token: Address; readonly spender: Address }
  | { readonly call: 'open'; readonly escrow: Address; readonly quote: Quote; readonly deposit: bigint }
  | { readonly call: 'topUp'; readonly escrow: Address; readonly leaseId: Hex32; readonly amount: bigint }
  | { readonly call: 'closeWithRelease' | 'requestClose' | 'finalize'; readonly escrow: Address }
  | { readonly call: 'withdraw'; readonly escrow: Address; readonly token: Address; readonly to: Address };

export interface Rail {
  readonly chainId: number;
  readonly escrow: Address;
  readonly token: Address;
}

export interface WalletRules {
  /** Contracts and tokens that may be used. Absent: any; then the wallet relies on whoever asks. */
  readonly rails?: readonly Rail[];
  /** Providers that may be paid. Absent: any whose signature is on the quote. */
  readonly providers?: readonly Address[];
}

export interface AskedOn {
  readonly chainId: number;
  readonly wallet: Address;
  /** `open`: whether the quote's provider signed it. */
  readonly signedByProvider?: boolean;
  /** `topUp`: the escrow, as the chain has it. */
  readonly target?: Pick<Escrow, 'consumer' | 'token' | 'closed' | 'provider'>;
}

export type Verdict =
  | { readonly sign: true; readonly spends?: { readonly token: Address; readonly amount: bigint } }
  | { readonly sign: false; readonly why: string };

const same = (a: string, b: string) => a.toLowerCase() === b.toLowerCase();

/** Whether the contract may be used, and with it the token, where one is named. */
export const isListed = ({ rails }: WalletRules, chainId: number, escrow: Address, token?: Address): boolean =>
  rails === undefined ||
  rails.some(
    (rail) => rail.chainId === chainId && same(rail.escrow, escrow) && (token === undefined || same(rail.token, token)),
  );

export function judge(asked: Asked, on: AskedOn, rules: WalletRules): Verdict {
  const no = (why: string): Verdict => ({ sign: false, why });
  const listed = (escrow: Address, token?: Address) => isListed(rules, on.chainId, escrow, token);
  const paid = (provider: Address) =>
    rules.providers === undefined || rules.providers.some((one) => same(one, provider));
  switch (asked.call) {
    case 'approve':
      return listed(asked.spender, asked.token)
        ? { sign: true }
        : no(`${asked.spender} may not take token ${asked.token}: it is no escrow that the wallet was given`);
    case 'open': {
      const { quote, escrow, deposit } = asked;
      if (!listed(escrow, quote.token)) return no(`escrow ${escrow} with token ${quote.token} is not listed`);
      if (!same(quote.consumer, on.wallet)) return no(`the quote is for ${quote.consumer}, not for this wallet`);
      if (!paid(quote.provider)) return no(`provider ${quote.provider} is not listed`);
      if (on.signedByProvider !== true) return no(`the quote is not signed by its provider ${quote.provider}`);
      return { sign: true, spends: { token: quote.token, amount: deposit } };
    }
    case 'topUp': {
      const { escrow, leaseId, amount } = asked;
      const { target } = on;
      if (!listed(escrow)) return no(`escrow ${escrow} is not listed`);
      if (target === undefined) return no(`there is no escrow ${leaseId}`);
      if (!same(target.consumer, on.wallet))
        return no(`escrow ${leaseId} is of ${target.consumer}, not of this wallet`);
      if (!listed(escrow, target.token)) return no(`token ${target.token} is not listed`);
      if (!paid(target.provider)) return no(`provider ${target.provider} is not listed`);
      if (target.closed) return no(`escrow ${leaseId} is closed`);
      return { sign: true, spends: { token: target.token, amount } };
    }
    case 'closeWithRelease':
    case 'requestClose':
    case 'finalize':
      return listed(asked.escrow) ? { sign: true } : no(`escrow ${asked.escrow} is not listed`);
    case 'withdraw':
      if (!listed(asked.escrow)) return no(`escrow ${asked.escrow} is not listed`);
      return same(asked.to, on.wallet) ? { sign: true } : no(`refunds go to this wallet alone, not to ${asked.to}`);
    default:
      return asked satisfies never;
  }
}
